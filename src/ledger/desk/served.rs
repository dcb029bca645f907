//! Routes that configuration and topics say are there, whether or not the ledger has met them.
//!
//! The ledger meets a route when a node that serves it starts. An operator may speak of it before: a fresh folder is told what
//! another one has delivered, so that it sends nothing of that again (I2). Such an order brings the route into the ledger
//! first ([`Prepared::introductions`](super::Prepared::introductions)), as a start would.

use super::Desk;
use crate::app::route_rules;
use crate::core::ledger::entry::{Body, Position, RouteInfo};
use crate::core::message_id::route_id;
use crate::core::types::{Offset, RoutePartition, TopicId};
use crate::intake::section_of;

/// A route, with the first offset that the topic still has of each partition.
#[derive(Clone, Debug, PartialEq)]
pub struct Served {
    /// Its names.
    pub route: RouteInfo,
    /// Where each partition begins.
    pub begins: Vec<Offset>,
}

impl Served {
    /// Its partitions.
    pub fn places(&self) -> impl Iterator<Item = (RoutePartition, Offset)> + '_ {
        let route = self.route.route;
        let place = move |(partition, begin): (usize, &Offset)| {
            let partition = partition as u32;
            (RoutePartition { route, partition }, *begin)
        };
        self.begins.iter().enumerate().map(place)
    }

    /// What the start of a node that meets the route writes.
    pub(super) fn introduction(&self) -> Vec<Body> {
        let position = |(at, begin)| {
            Body::Position(Position {
                at,
                leader_epoch: 0,
                position: begin,
                finished: Vec::new(),
                high_water: begin,
            })
        };
        let mut entries = vec![Body::Route(self.route.clone())];
        entries.extend(self.places().map(position));
        entries
    }
}

/// Stands for the incarnation of a topic that is not made yet.
const NOT_MADE: TopicId = TopicId(0);

impl Desk {
    /// All routes that the configuration says and whose topic is there.
    pub fn served(&self) -> Vec<Served> {
        let mut all = Vec::new();
        for topic in self.entries.topics() {
            let Some((topic_id, partitions)) = self.entries.topic(&topic) else {
                continue;
            };
            let begin = |partition| self.entries.input_bounds(&topic, partition).map_or(0, |b| b.0);
            let begins = (0..partitions).map(begin).collect();
            all.extend(self.served_of(&topic, topic_id, begins));
        }
        all
    }

    /// The routes that a topic will have once it is made. Which IDs they will know nobody can tell yet, but how many.
    pub(super) fn served_once_made(&self, topic: &str, partitions: u32) -> Vec<Served> {
        self.served_of(topic, NOT_MADE, vec![0; partitions as usize])
    }

    fn served_of(&self, topic: &str, topic_id: TopicId, begins: Vec<Offset>) -> Vec<Served> {
        let Some(section) = section_of(&self.config, topic) else {
            return Vec::new();
        };
        let routes = route_rules(&self.config, &section).into_iter();
        let served = |partner: String| Served {
            route: RouteInfo {
                route: route_id(topic, topic_id, &partner),
                topic: topic.to_owned(),
                topic_id,
                partner,
            },
            begins: begins.clone(),
        };
        routes.map(|(partner, _)| served(partner)).collect()
    }
}
