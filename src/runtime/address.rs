//! Which network addresses belong to the public internet.

use std::net::IpAddr;

/// Whether `address` is one that a message to the outside may be sent to: not this machine, not a private network, not a
/// cloud's metadata service (which is link-local), and no other form of writing one of those.
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let [first, second, third, _] = address.octets();
            let is_shared = first == 100 && (64..128).contains(&second);
            let is_this_network = first == 0;
            let is_protocol = (first, second, third) == (192, 0, 0);
            let is_benchmark = first == 198 && (18..20).contains(&second);
            let is_reserved = first >= 240;
            !(address.is_private()
                || address.is_loopback()
                || address.is_link_local()
                || address.is_multicast()
                || address.is_documentation()
                || is_shared
                || is_this_network
                || is_protocol
                || is_benchmark
                || is_reserved)
        }
        IpAddr::V6(address) => {
            // 64:ff9b::/96 and 2002::/16 carry an IPv4 address, which a gateway on the way may unwrap.
            let [first, second, ..] = address.segments();
            let is_translated = (first, second) == (0x64, 0xff9b) || first == 0x2002;
            !(address.is_loopback()
                || address.is_unspecified()
                || address.is_multicast()
                || address.is_unique_local()
                || address.is_unicast_link_local()
                || is_translated)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_public() {
        for public in ["1.1.1.1", "8.8.8.8", "100.63.0.1", "172.32.0.1", "2606:4700::1111"] {
            assert!(public.parse().is_ok_and(is_public), "{public}");
        }
        for private in [
            "127.0.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "192.0.0.1",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
        ] {
            assert!(!private.parse().is_ok_and(is_public), "{private}");
        }
    }
}
