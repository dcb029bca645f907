//! Group commit: the one writer of a lane.
