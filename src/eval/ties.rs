//! Which modes cannot be told apart: a compact letter display (Piepho, J. Comput. Graph. Stat. 13,
//! 2004). Modes that share a group are tied; "tied" is not transitive, so a mode may be in several.

/// The groups of modes that cannot be told apart, largest possible, each in ascending order.
/// `differ` lists the pairs that can.
pub fn groups(modes: usize, differ: &[(usize, usize)]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = match modes {
        0 => vec![],
        n => vec![(0..n).collect()],
    };
    for (a, b) in differ {
        let mut split = Vec::new();
        for group in groups {
            if group.contains(a) && group.contains(b) {
                for out in [a, b] {
                    split.push(group.iter().copied().filter(|m| m != out).collect());
                }
            } else {
                split.push(group);
            }
        }
        groups = absorbed(split);
    }
    groups.sort();
    groups
}

/// Without groups that lie in another.
fn absorbed(groups: Vec<Vec<usize>>) -> Vec<Vec<usize>> {
    let within = |a: &[usize], b: &[usize]| a.iter().all(|m| b.contains(m));
    let mut kept: Vec<Vec<usize>> = Vec::new();
    for group in groups {
        if kept.iter().any(|k| within(&group, k)) {
            continue;
        }
        kept.retain(|k| !within(k, &group));
        kept.push(group);
    }
    kept
}

/// The letters of each mode: `a` for the first group, `b` for the second, ….
pub fn letters(modes: usize, groups: &[Vec<usize>]) -> Vec<String> {
    (0..modes)
        .map(|mode| {
            (groups.iter().enumerate())
                .filter(|(_, group)| group.contains(&mode))
                .map(|(i, _)| letter(i))
                .collect()
        })
        .collect()
}

fn letter(i: usize) -> String {
    let name = char::from(b'a' + (i % 26) as u8);
    match i / 26 {
        0 => name.to_string(),
        round => format!("{name}{round}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn by_hand() {
        assert_eq!(groups(3, &[]), [[0, 1, 2]]);
        // 0 and 2 differ, 1 lies between and is tied with both.
        assert_eq!(groups(3, &[(0, 2)]), [[0, 1], [1, 2]]);
        assert_eq!(letters(3, &groups(3, &[(0, 2)])), ["a", "ab", "b"]);
        // 2 stands alone.
        assert_eq!(groups(3, &[(0, 2), (1, 2)]), [vec![0, 1], vec![2]]);
        assert!(groups(0, &[]).is_empty());
    }

    proptest! {
        /// Two modes share a group exactly when they cannot be told apart.
        #[test]
        fn groups_say_what_the_pairs_say(n in 1usize..8, bits in any::<u32>()) {
            let pairs: Vec<(usize, usize)> = (0..n).flat_map(|a| (a + 1..n).map(move |b| (a, b))).collect();
            let differ: Vec<_> = (pairs.iter().enumerate())
                .filter(|(i, _)| bits >> i & 1 == 1)
                .map(|(_, p)| *p)
                .collect();
            let groups = groups(n, &differ);
            for (a, b) in &pairs {
                let together = groups.iter().any(|g| g.contains(a) && g.contains(b));
                prop_assert_eq!(together, !differ.contains(&(*a, *b)));
            }
            for m in 0..n {
                prop_assert!(groups.iter().any(|g| g.contains(&m)));
            }
        }
    }
}
