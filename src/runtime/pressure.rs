//! How much work waits for a core, as the kernel counts it (pressure stall information).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The kernel's count of the time in which some task was ready to run and had no core.
#[derive(Clone, Debug)]
pub struct CpuPressure {
    file: PathBuf,
}

impl CpuPressure {
    /// That of our own control group, or else of the machine; `None` where the kernel does not count.
    pub fn find() -> Option<Self> {
        let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let group = membership.lines().find_map(|line| line.strip_prefix("0::"));
        let group = group.map(|path| Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/')));
        let files =
            group.map(|group| group.join("cpu.pressure")).into_iter().chain([PathBuf::from("/proc/pressure/cpu")]);
        files.map(Self::at).find(|pressure| pressure.waited().is_some())
    }

    /// As counted in `file`.
    pub const fn at(file: PathBuf) -> Self {
        Self { file }
    }

    /// The time in which some task has waited, since the count began.
    pub fn waited(&self) -> Option<Duration> {
        let text = fs::read_to_string(&self.file).ok()?;
        let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
        let total = some.split_whitespace().find_map(|field| field.strip_prefix("total="))?;
        total.parse().ok().map(Duration::from_micros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_count_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let pressure = CpuPressure::at(dir.path().join("cpu.pressure"));
        assert_eq!(pressure.waited(), None);
        let text = "some avg10=36.80 avg60=14.57 avg300=7.62 total=12175281606\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
        fs::write(&pressure.file, text).unwrap();
        assert_eq!(pressure.waited(), Some(Duration::from_micros(12_175_281_606)));
        fs::write(&pressure.file, "full total=3\n").unwrap();
        assert_eq!(pressure.waited(), None);
    }
}
