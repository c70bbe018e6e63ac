//! Finds a small scenario that still fails: acts are left out by halves, quarters and one by one, as long as what is left fails.

use super::scenario::{Act, Scenario, Step};

/// The smallest scenario found that `fails`, which is asked at most `attempts` times. Whatever is left happens when it happened before.
pub fn shrink(scenario: &Scenario, attempts: usize, mut fails: impl FnMut(&Scenario) -> bool) -> Scenario {
    let mut smallest = scenario.clone();
    let mut left = attempts;
    let mut attempt = |candidate: &Scenario, left: &mut usize| {
        if *left == 0 {
            return false;
        }
        *left -= 1;
        fails(candidate)
    };
    let mut piece = smallest.steps.len().div_ceil(2);
    while piece > 0 && left > 0 {
        let mut begin = 0;
        let mut smaller = false;
        // From the end: what comes after the failure goes first.
        while begin < smallest.steps.len() && left > 0 {
            let end = smallest.steps.len() - begin;
            let without = without(&smallest, end.saturating_sub(piece), end);
            if attempt(&without, &mut left) {
                smallest = without;
                smaller = true;
            } else {
                begin += piece;
            }
        }
        if piece == 1 && !smaller {
            break;
        }
        piece = if piece == 1 { 1 } else { piece.div_ceil(2) };
    }
    for index in 0..smallest.steps.len() {
        while let Some(fewer) =
            fewer_services(&smallest, index).into_iter().find(|fewer| attempt(fewer, &mut left))
        {
            smallest = fewer;
        }
    }
    if smallest.servers > 1 {
        let alone = Scenario { servers: 1, ..smallest.clone() };
        if attempt(&alone, &mut left) {
            smallest = alone;
        }
    }
    smallest
}

/// The scenario without some of its steps; the others happen when they did.
fn without(scenario: &Scenario, begin: usize, end: usize) -> Scenario {
    let mut steps = Vec::new();
    let mut owed = 0;
    for (index, step) in scenario.steps.iter().enumerate() {
        if (begin..end).contains(&index) {
            owed += step.after;
        } else {
            steps.push(Step { after: step.after + std::mem::take(&mut owed), act: step.act.clone() });
        }
    }
    Scenario { steps, ..scenario.clone() }
}

/// The scenario with one service fewer in a deployment.
fn fewer_services(scenario: &Scenario, index: usize) -> Vec<Scenario> {
    let Some(Step { after, act: Act::Up { app, services } }) = scenario.steps.get(index) else {
        return Vec::new();
    };
    if services.len() < 2 {
        return Vec::new();
    }
    let without = |left_out: usize| {
        let mut services = services.clone();
        services.remove(left_out);
        let mut fewer = scenario.clone();
        fewer.steps[index] = Step { after: *after, act: Act::Up { app: *app, services } };
        fewer
    };
    (0..services.len()).map(without).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_nothing_to_do_with_it_is_left_out_and_the_rest_happens_when_it_did() {
        let scenario = Scenario::of_seed(3, 5, 2.0);
        let at = |scenario: &Scenario, wanted: &Act| {
            let mut at = 0;
            scenario.steps.iter().find_map(|step| {
                at += step.after;
                (step.act == *wanted).then_some(at)
            })
        };
        let (first, second) = (&scenario.steps[4].act, &scenario.steps[17].act);
        let fails = |tried: &Scenario| at(tried, first).is_some() && at(tried, second).is_some();
        let small = shrink(&scenario, 500, fails);
        assert_eq!(small.steps.len(), 2, "{small}");
        assert_eq!(at(&small, second), at(&scenario, second));
        let untouched = shrink(&scenario, 0, fails);
        assert_eq!(untouched, scenario);
    }
}
