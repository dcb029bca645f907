//! Who takes part, with which limits and policies, as configuration files. Pure.

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

/// Deliveries are spread over about so many seconds; with imports, kills and the outage a run stays below two minutes.
const SECONDS: u64 = 40;
/// No limit is below this, or a small demonstration would be over before anything happened.
const LEAST: u64 = 50;
/// The event that the CRM refuses for good belongs to a user whose name begins so.
pub const BLOCKED: &str = "blocked-";

/// One partner of the demonstration.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Its name.
    pub name: &'static str,
    /// Its topic.
    pub topic: &'static str,
    /// Messages made for it (different ones).
    pub messages: u64,
    /// Its limit, in starts a second.
    pub limit: u64,
}

/// The whole demonstration.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// Attribution URLs.
    pub tracker: Part,
    /// JSON events.
    pub crm: Part,
    /// CSV orders.
    pub shop: Part,
    /// Seed of everything random.
    pub seed: u64,
}

impl Scenario {
    /// Splits so many messages over the partners.
    pub fn new(messages: u64, seed: u64) -> Self {
        let (crm, shop) = (messages * 3 / 10, messages / 5);
        let tracker = messages - crm - shop;
        let part = |name, topic, messages: u64, seconds| Part {
            name,
            topic,
            messages,
            limit: messages.div_ceil(seconds).max(LEAST),
        };
        Self {
            tracker: part("tracker", "clicks", tracker, SECONDS),
            crm: part("crm", "events", crm, SECONDS),
            // It loses some seconds while it is down, and catches up.
            shop: part("shop", "orders", shop, SECONDS * 3 / 4),
            seed,
        }
    }

    /// All three, in the order of tables.
    pub fn parts(&self) -> [&Part; 3] {
        [&self.tracker, &self.crm, &self.shop]
    }

    /// All messages.
    pub fn messages(&self) -> u64 {
        self.parts().iter().map(|p| p.messages).sum()
    }

    /// When the node is killed: at these shares of all messages applied.
    pub fn kills(&self) -> [u64; 2] {
        [self.messages() * 3 / 10, self.messages() * 6 / 10]
    }

    /// After so long it is given up.
    pub fn patience(&self) -> Duration {
        let slowest = self
            .parts()
            .iter()
            .map(|p| p.messages / p.limit)
            .max()
            .unwrap_or(0);
        Duration::from_secs(120 + 3 * slowest)
    }

    /// The stand-in partners' options: one process, a listener for each.
    pub fn mock_toml(&self) -> String {
        format!(
            r#"# The partners of the demonstration: `sluicegate mock --from mock.toml`.
listen = "127.0.0.1:0"
seed = {seed}

[[partners]]                 # fast and sound
name = "tracker"
listen = "127.0.0.1:0"
id = "query:click_id"
latency = "1ms..8ms"
faults = ["503=0.003"]

[[partners]]                 # flaky, but it never applies one Idempotency-Key twice
name = "crm"
listen = "127.0.0.1:0"
id = "json:/id"
key = "json:/user"
seq = "json:/seq"
latency = "exp:10ms"
idempotent = true
applied_in_doubt = 0.5
faults = ["503=0.02", "reset-after-read=0.0005", "hang=0.0002", "502=0.0005", "error-body=0.0003"]
rules = ["key={BLOCKED}* 422"]
retry_after = "none"

[[partners]]                 # down for a while
name = "shop"
listen = "127.0.0.1:0"
id = "json:/id"
latency = "3ms..15ms"
from_first_request = true
script = ["up 12s", "down 8s", "up"]
"#,
            seed = self.seed,
        )
    }

    /// The node's configuration, for partners at these addresses (in the order of [`Scenario::parts`]).
    pub fn actors_toml(&self, admin: SocketAddr, partners: [&str; 3]) -> String {
        let [_, crm, shop] = partners.map(|p| p.trim_end_matches('/'));
        let mut text = format!(
            r#"# The node of the demonstration.
[node]
id = "demo"
data = "data"

[listen]
admin = "{admin}"

[partners.tracker]
url = "{{{{ value }}}}"          # a record is a URL: a GET of it
limits = ["{tracker_limit}/s"]
concurrency = 64
timeout = {{ connect = "1s", request = "5s" }}
doubt = "park"               # what was on the wire at a kill waits for an operator

[partners.crm]
url = "{crm}/events"
limits = ["{crm_limit}/s"]
concurrency = 128
timeout = {{ connect = "1s", request = "2s" }}
retry = {{ first = "100ms", longest = "2s" }}
doubt = "resend"             # it knows an Idempotency-Key again
on_doubt = "hold"            # events of a user stay in order, come what may
verdict = [{{ when = "status == 200 and (not body.code exists or body.code != 0)", is = "refused", reason = "body.message" }}]

[partners.shop]
url = "{shop}/orders"
limits = ["{shop_limit}/s"]
concurrency = 64
timeout = {{ connect = "1s", request = "5s" }}
retry = {{ first = "100ms", longest = "1s" }}
doubt = "verify"             # it can be asked whether it has an order
breaker = {{ failures = 20, open = "500ms", longest = "2s" }}

[partners.shop.verify]
url = "{shop}/lookup/{{{{ id | urlencode }}}}"
delivered = "status == 200 and body.known == true"
never_seen = "status == 200 and body.known == false"
settle = "200ms"

[ledger]
lease = "2s"                 # short, so that a kill's doubts are settled while you watch
"#,
            tracker_limit = self.tracker.limit,
            crm_limit = self.crm.limit,
            shop_limit = self.shop.limit,
        );
        let topics = [
            (&self.tracker, "query:click_id", "record"),
            (&self.crm, "json:/id", "json:/user"),
            (&self.shop, "json:/id", "json:/user"),
        ];
        for (part, id, key) in topics {
            // Writing into a string cannot fail.
            let _ = write!(
                text,
                "\n[topics.{}]\npartner = \"{}\"\nid = \"{id}\"\nkey = \"{key}\"\n",
                part.topic, part.name
            );
        }
        text
    }
}
