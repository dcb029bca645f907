//! Walking through the store: for lists and exports, and for carrying IDs out of a bucket.

use super::block::{FORGOTTEN, OwnedRow, Row};
use super::bucket::last_block;
use super::store::Shared;
use super::view::{BucketView, found};
use super::{DedupError, Found};
use crate::core::ledger::fold::FinishedState;
use crate::core::types::{RoutePartition, Time};
use std::collections::HashSet;
use std::ops::ControlFlow;

/// Rows of a memory table that are copied at once.
const CHUNK: usize = 1_024;

/// Which IDs are listed. The default passes all.
#[derive(Clone, Debug, Default)]
pub struct IdFilter {
    /// Only these route partitions.
    pub at: Option<HashSet<RoutePartition>>,
    /// Only these states.
    pub states: Option<HashSet<FinishedState>>,
    /// Only what was finished at or after this time, to the second.
    pub from: Option<Time>,
    /// Only what was finished before this time, to the second.
    pub to: Option<Time>,
    /// Only IDs whose readable or hexadecimal form begins like this.
    pub prefix: Option<String>,
}

impl IdFilter {
    fn passes(&self, found: &Found) -> bool {
        let text = |prefix: &String| {
            found.readable.starts_with(prefix.as_bytes())
                || (prefix.len() <= 32 && found.id.to_string().starts_with(&prefix.to_ascii_lowercase()))
        };
        self.at.as_ref().is_none_or(|at| at.contains(&found.at))
            && self
                .states
                .as_ref()
                .is_none_or(|states| states.contains(&found.state))
            && self.from.is_none_or(|from| found.when.secs() >= from.secs())
            && self.to.is_none_or(|to| found.when.secs() < to.secs())
            && self.prefix.as_ref().is_none_or(text)
    }
}

/// See [`super::DedupStore::iterate`].
pub(super) fn iterate(
    shared: &Shared,
    filter: &IdFilter,
    visit: &mut dyn FnMut(Found) -> ControlFlow<()>,
) -> Result<(), DedupError> {
    let view = shared.view.read().clone();
    let mut check = |run: u32, row: &Row<'_>| -> Result<ControlFlow<()>, DedupError> {
        if row.state == FORGOTTEN {
            return Ok(ControlFlow::Continue(()));
        }
        let at = shared.routes.read().at(row.route);
        let Some(found) = at.and_then(|at| found(at, row)) else {
            return Ok(ControlFlow::Continue(()));
        };
        // The cheap question first: most filters pass little.
        if !filter.passes(&found) || shared.hidden(&view, run, &row.id)? {
            return Ok(ControlFlow::Continue(()));
        }
        Ok(visit(found))
    };
    for mem in &view.mems {
        let len = mem.table.read().len();
        for first in (0..len).step_by(CHUNK) {
            let rows: Vec<OwnedRow> = mem
                .table
                .read()
                .rows(first, CHUNK.min(len - first))
                .map(|r| r.to_owned_row())
                .collect();
            for row in &rows {
                if check(mem.run, &row.borrow())?.is_break() {
                    return Ok(());
                }
            }
        }
    }
    for seen in &view.buckets {
        let seen = match seen {
            BucketView::Live(live) => live,
            BucketView::Sealed(sealed) => {
                if sealed.each_row(&mut |row| check(sealed.run, row))?.is_break() {
                    return Ok(());
                }
                continue;
            }
        };
        let bucket = &seen.bucket;
        for run in seen.groups.iter().flat_map(|g| &g.runs) {
            for prefix in 0..=last_block(run.bits) {
                // Copied out, so that the bucket is free while the rows are looked at.
                let bytes = bucket.with(&shared.env, |opened| bucket.block(opened, run.seq, prefix))?;
                let Some(bytes) = bytes.flatten() else { continue };
                let block = bucket.parse(&bytes)?;
                for i in 0..block.len() {
                    let row = block.row(i).map_err(|e| bucket.block_damage(e))?;
                    if check(run.seq, &row)?.is_break() {
                        return Ok(());
                    }
                }
            }
        }
    }
    Ok(())
}

/// Every record of a bucket's runs, newest run first, with its run.
pub(super) fn bucket_rows(
    shared: &Shared,
    bucket: u32,
    visit: &mut dyn FnMut(u32, &Row<'_>) -> Result<(), DedupError>,
) -> Result<(), DedupError> {
    let view = shared.view.read().clone();
    let seen = view
        .buckets
        .iter()
        .find(|b| b.id() == bucket)
        .ok_or(DedupError::NoBucket(bucket))?;
    let seen = match seen {
        BucketView::Live(live) => live,
        BucketView::Sealed(sealed) => {
            let visit = &mut |row: &Row<'_>| visit(sealed.run, row).map(ControlFlow::Continue);
            return sealed.each_row(visit).map(drop);
        }
    };
    for run in seen.groups.iter().flat_map(|g| &g.runs) {
        for prefix in 0..=last_block(run.bits) {
            let bytes = seen
                .bucket
                .with(&shared.env, |opened| seen.bucket.block(opened, run.seq, prefix))?;
            let Some(bytes) = bytes.flatten() else { continue };
            let block = seen.bucket.parse(&bytes)?;
            for i in 0..block.len() {
                visit(run.seq, &block.row(i).map_err(|e| seen.bucket.block_damage(e))?)?;
            }
        }
    }
    Ok(())
}
