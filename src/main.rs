//! The `sluicegate` binary: parses arguments, runs one command, exits with its code.

/// jemalloc: key actors made and dropped for every delivery cost a third less than on glibc malloc
/// (measured; `docs/benchmarks.md`), and resident memory goes back to the system.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    sluicegate::cli::main()
}
