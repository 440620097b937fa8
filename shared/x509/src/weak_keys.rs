//! RSA keys that are broken whatever their size: whoever sees the certificate can compute the private key.

use num_bigint::BigUint;

/// How often Fermat's method is tried (CA/Browser Forum Baseline Requirements §6.1.1.3).
const FERMAT_ROUNDS: u32 = 100;
/// Up to here primes are tried (NIST SP 800-89 §5.3.3: a modulus has no factor below 752).
const SMALL: u32 = 752;
/// The primes that generators with CVE-2017-15361 built their own from.
const ROCA: u32 = 167;
const GENERATOR: u32 = 65_537;

/// What is wrong with a modulus, big-endian.
pub(crate) fn weakness(modulus: &[u8]) -> Option<&'static str> {
    let modulus = BigUint::from_bytes_be(modulus);
    let residues: Vec<(u32, u32)> = odd_primes().map(|prime| (prime, residue(&modulus, prime))).collect();
    if residues.iter().any(|(_, residue)| *residue == 0) {
        return Some("its modulus has a small factor");
    }
    if residues
        .iter()
        .take_while(|(prime, _)| *prime <= ROCA)
        .all(|(prime, residue)| is_power(*residue, *prime))
    {
        return Some("it was made by a generator whose keys can be computed (ROCA, CVE-2017-15361)");
    }
    close_factors(&modulus)
        .then_some("the factors of its modulus are so close that they can be found (Fermat's method)")
}

fn odd_primes() -> impl Iterator<Item = u32> {
    (3..SMALL)
        .step_by(2)
        .filter(|n| (3..).step_by(2).take_while(|d| d * d <= *n).all(|d| n % d != 0))
}

fn residue(modulus: &BigUint, prime: u32) -> u32 {
    (modulus % prime).iter_u32_digits().next().unwrap_or(0)
}

/// Whether a number is a power of the generator modulo a prime.
fn is_power(number: u32, prime: u32) -> bool {
    let mut power = 1;
    loop {
        if power == number {
            return true;
        }
        power = power * (GENERATOR % prime) % prime;
        if power == 1 {
            return false;
        }
    }
}

/// Whether the modulus is the difference of two squares a² − b² with an a just above its root.
fn close_factors(modulus: &BigUint) -> bool {
    let mut a = modulus.sqrt();
    if &(&a * &a) < modulus {
        a += 1u32;
    }
    let mut square = &a * &a - modulus;
    for _ in 0..FERMAT_ROUNDS {
        if is_square(&square) {
            return true;
        }
        square += &a * 2u32 + 1u32;
        a += 1u32;
    }
    false
}

fn is_square(number: &BigUint) -> bool {
    // Most numbers leave a rest that no square does, which is cheaper to see than a root.
    const MODULI: [u32; 4] = [64, 63, 65, 11];
    let may_be = MODULI.iter().all(|modulus| {
        let rest = residue(number, *modulus);
        (0..*modulus).any(|root| root * root % modulus == rest)
    });
    may_be && {
        let root = number.sqrt();
        &root * &root == *number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An odd number of so many bits without small factors, the first from `start` on.
    fn rough(start: BigUint) -> BigUint {
        let mut number = start | BigUint::from(1u32);
        while odd_primes().any(|prime| residue(&number, prime) == 0) {
            number += 2u32;
        }
        number
    }

    fn power_of_two(exponent: u32) -> BigUint {
        BigUint::from(2u32).pow(exponent)
    }

    #[test]
    fn ordinary_moduli_are_not_weak() {
        let far = rough(power_of_two(1023) + BigUint::from(12_345u32)) * rough(power_of_two(1022) * 3u32);
        assert_eq!(weakness(&far.to_bytes_be()), None);
    }

    #[test]
    fn a_small_factor_is_found() {
        for factor in [3u32, 127, 751] {
            let modulus = rough(power_of_two(2040)) * factor;
            assert_eq!(
                weakness(&modulus.to_bytes_be()),
                Some("its modulus has a small factor"),
                "{factor}"
            );
        }
    }

    #[test]
    fn a_modulus_of_a_roca_generator_is_found() {
        // As those: a power of 65537 modulo the product of the first primes.
        let product: BigUint = odd_primes()
            .take_while(|prime| *prime <= ROCA)
            .map(BigUint::from)
            .product();
        let power = BigUint::from(GENERATOR).modpow(&BigUint::from(1_234_567u32), &product);
        let mut modulus = &product * power_of_two(1800) + power;
        while odd_primes().any(|prime| residue(&modulus, prime) == 0) {
            modulus += &product;
        }
        assert!(weakness(&modulus.to_bytes_be()).unwrap().contains("ROCA"));
    }

    #[test]
    fn factors_side_by_side_are_found() {
        let one = rough(power_of_two(1023) + BigUint::from(99u32));
        let other = rough(&one + power_of_two(500));
        assert!(weakness(&(&one * &other).to_bytes_be()).unwrap().contains("Fermat"));
        assert!(weakness(&(&one * &one).to_bytes_be()).unwrap().contains("Fermat"));
    }
}
