//! How important a process is to the kernel while there is more to do than there are cores.

use std::thread;

use rustix::process::{Pid, getpriority_process, setpriority_pgrp, setpriority_process};

/// Steps of niceness by which a process gives way. At ten it gets a tenth of what others get, and a whole core where one
/// is free.
const STEPS: i32 = 10;

/// Makes processes give way for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Priority {
    /// This program's own niceness.
    own: i32,
}

impl Priority {
    /// `None` where a process that has given way once has to do so for ever: the system lets only some take that back
    /// (`CAP_SYS_NICE`, or a limit on niceness as systemd's `LimitNICE=` sets it).
    pub fn find() -> Option<Self> {
        // Niceness belongs to a thread. Tried on one of its own, it ends with that if it cannot be taken back.
        let tried = thread::spawn(|| {
            let own = getpriority_process(None).ok()?;
            setpriority_process(None, own + 1).ok()?;
            setpriority_process(None, own).ok()?;
            Some(Self { own })
        });
        tried.join().ok().flatten()
    }

    /// Makes the process group `leader`, with all its threads, give way until what is returned is dropped. `None` if it is
    /// gone already.
    pub fn give_way(self, leader: i32) -> Option<GivingWay> {
        let group = Pid::from_raw(leader)?;
        setpriority_pgrp(Some(group), self.own + STEPS).ok()?;
        Some(GivingWay { group, own: self.own })
    }
}

/// A process group that gives way.
#[derive(Debug)]
pub struct GivingWay {
    group: Pid,
    own: i32,
}

impl Drop for GivingWay {
    fn drop(&mut self) {
        // It may be gone.
        let _ = setpriority_pgrp(Some(self.group), self.own);
    }
}
