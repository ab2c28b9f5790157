//! Entry point.
use otel_ebpf::probes::*;
fn main() {
    let p = Probes::load(&ProbeSettings {
        offsets: Default::default(),
        ring_bytes: 8 << 20,
        kernel_log: false,
    });
    match p {
        Ok(p) => {
            for (n, v) in p.programs() {
                println!("{n} {v:?}")
            }
        }
        Err(e) => {
            println!("{e}");
            let mut s: &dyn std::error::Error = &e;
            while let Some(x) = s.source() {
                println!("{x}");
                s = x;
            }
        }
    }
}
