//! Tests of the partition with fake neighbours.
