//! What depends on the processor: system call numbers and registers.
//!
//! Nothing outside this module assumes a register or a number.

#[cfg(bpf_target_arch = "x86_64")]
mod imp {
    //! x86_64: `struct pt_regs` of arch/x86/include/asm/ptrace.h (5.10 to
    //! 7.0): r10 at 56, rdx 96, rsi 104, rdi 112, orig_rax 120.

    /// System call numbers (arch/x86/entry/syscalls/syscall_64.tbl).
    pub(crate) mod nr {
        pub(crate) const READ: i64 = 0;
        pub(crate) const WRITE: i64 = 1;
        pub(crate) const CLOSE: i64 = 3;
        pub(crate) const POLL: i64 = 7;
        pub(crate) const READV: i64 = 19;
        pub(crate) const WRITEV: i64 = 20;
        pub(crate) const SELECT: i64 = 23;
        pub(crate) const DUP: i64 = 32;
        pub(crate) const DUP2: i64 = 33;
        pub(crate) const SENDFILE: i64 = 40;
        pub(crate) const CONNECT: i64 = 42;
        pub(crate) const ACCEPT: i64 = 43;
        pub(crate) const SENDTO: i64 = 44;
        pub(crate) const RECVFROM: i64 = 45;
        pub(crate) const SENDMSG: i64 = 46;
        pub(crate) const RECVMSG: i64 = 47;
        pub(crate) const LISTEN: i64 = 50;
        pub(crate) const FCNTL: i64 = 72;
        pub(crate) const EPOLL_WAIT: i64 = 232;
        pub(crate) const PSELECT6: i64 = 270;
        pub(crate) const PPOLL: i64 = 271;
        pub(crate) const EPOLL_PWAIT: i64 = 281;
        pub(crate) const ACCEPT4: i64 = 288;
        pub(crate) const DUP3: i64 = 292;
        pub(crate) const EPOLL_PWAIT2: i64 = 441;
    }

    use aya_ebpf::programs::ProbeContext;

    use crate::kernel;

    /// Distance from the thread pointer to the pointer to the thread's table
    /// of thread-local blocks (`tcbhead_t.dtv` of glibc), bytes.
    pub(crate) const TLS_TABLE: i64 = 8;

    /// The number.
    #[inline(always)]
    pub(crate) fn number(regs: u64) -> Option<i64> {
        kernel::read(regs, 120)
    }

    /// The first four arguments.
    #[inline(always)]
    pub(crate) fn args(regs: u64) -> Option<[u64; 4]> {
        // From r10 to rdi.
        let words: [u64; 8] = kernel::read(regs, 56)?;
        Some([words[7], words[6], words[5], words[0]])
    }

    /// What register number `N` of those that a probe inside a function can
    /// read a result from holds: rax, rbx, rbp, rdi, r12 to r15.
    #[inline(always)]
    pub(crate) fn holder<const N: u8>(ctx: &ProbeContext) -> u64 {
        // SAFETY: the kernel hands a probe the registers of its hit.
        let regs = unsafe { &*ctx.regs };
        match N {
            0 => regs.rax,
            1 => regs.rbx,
            2 => regs.rbp,
            3 => regs.rdi,
            4 => regs.r12,
            5 => regs.r13,
            6 => regs.r14,
            _ => regs.r15,
        }
    }

    /// The address of the instruction that is probed.
    #[inline(always)]
    pub(crate) fn place(ctx: &ProbeContext) -> u64 {
        // SAFETY: as in `holder`.
        unsafe { (*ctx.regs).rip }
    }

    /// The stack pointer.
    #[inline(always)]
    pub(crate) fn stack(ctx: &ProbeContext) -> u64 {
        // SAFETY: as in `holder`.
        unsafe { (*ctx.regs).rsp }
    }
}

#[cfg(bpf_target_arch = "aarch64")]
mod imp {
    //! aarch64: `struct pt_regs` of arch/arm64/include/asm/ptrace.h: regs at
    //! 0, orig_x0 at 272, syscallno (s32) at 280. x0 is overwritten by the
    //! result, so the first argument comes from orig_x0.

    /// System call numbers (include/uapi/asm-generic/unistd.h).
    pub(crate) mod nr {
        pub(crate) const READ: i64 = 63;
        pub(crate) const WRITE: i64 = 64;
        pub(crate) const CLOSE: i64 = 57;
        /// Not on this architecture.
        pub(crate) const POLL: i64 = -2;
        pub(crate) const READV: i64 = 65;
        pub(crate) const WRITEV: i64 = 66;
        /// Not on this architecture.
        pub(crate) const SELECT: i64 = -3;
        pub(crate) const DUP: i64 = 23;
        /// Not on this architecture.
        pub(crate) const DUP2: i64 = -4;
        pub(crate) const SENDFILE: i64 = 71;
        pub(crate) const CONNECT: i64 = 203;
        pub(crate) const ACCEPT: i64 = 202;
        pub(crate) const SENDTO: i64 = 206;
        pub(crate) const RECVFROM: i64 = 207;
        pub(crate) const SENDMSG: i64 = 211;
        pub(crate) const RECVMSG: i64 = 212;
        pub(crate) const LISTEN: i64 = 201;
        pub(crate) const FCNTL: i64 = 25;
        /// Not on this architecture.
        pub(crate) const EPOLL_WAIT: i64 = -5;
        pub(crate) const PSELECT6: i64 = 72;
        pub(crate) const PPOLL: i64 = 73;
        pub(crate) const EPOLL_PWAIT: i64 = 22;
        pub(crate) const ACCEPT4: i64 = 242;
        pub(crate) const DUP3: i64 = 24;
        pub(crate) const EPOLL_PWAIT2: i64 = 441;
    }

    use aya_ebpf::programs::ProbeContext;

    use crate::kernel;

    /// As on x86_64: `tcbhead_t.dtv` comes first.
    pub(crate) const TLS_TABLE: i64 = 0;

    /// The number.
    #[inline(always)]
    pub(crate) fn number(regs: u64) -> Option<i64> {
        kernel::read::<i32>(regs, 280).map(i64::from)
    }

    /// The first four arguments.
    #[inline(always)]
    pub(crate) fn args(regs: u64) -> Option<[u64; 4]> {
        let [_result, second, third, fourth] = kernel::read::<[u64; 4]>(regs, 0)?;
        let original_x0: u64 = kernel::read(regs, 272)?;
        Some([original_x0, second, third, fourth])
    }

    /// As on x86_64: x0, then x19 to x25, which calls preserve.
    #[inline(always)]
    pub(crate) fn holder<const N: u8>(ctx: &ProbeContext) -> u64 {
        // SAFETY: the kernel hands a probe the registers of its hit.
        let regs = unsafe { &*ctx.regs };
        match N {
            0 => regs.regs[0],
            _ => regs.regs[18 + N as usize],
        }
    }

    /// The address of the instruction that is probed.
    #[inline(always)]
    pub(crate) fn place(ctx: &ProbeContext) -> u64 {
        // SAFETY: as in `holder`.
        unsafe { (*ctx.regs).pc }
    }

    /// The stack pointer.
    #[inline(always)]
    pub(crate) fn stack(ctx: &ProbeContext) -> u64 {
        // SAFETY: as in `holder`.
        unsafe { (*ctx.regs).sp }
    }
}

pub(crate) use imp::{TLS_TABLE, args, holder, nr, number, place, stack};
