//! Making the tables, when several programs want to at once.

use auth_pool::store::{Scope, Store};
use futures_util::future::join_all;

use super::{Bench, on_both};

on_both!(several_programs_make_the_tables_at_once, a_program_that_begins_amid_others_finds_everything);

async fn several_programs_make_the_tables_at_once(bench: Bench) {
    let location = bench.empty().await;
    let programs: Vec<Store> = (0..4).map(|_| Store::new(location.clone())).collect();
    for outcome in join_all(programs.iter().map(Store::prepare)).await {
        outcome.unwrap();
    }
    for program in &programs {
        assert_eq!(program.account(&Scope::Everything, "nobody").await.unwrap(), None);
    }
}

async fn a_program_that_begins_amid_others_finds_everything(bench: Bench) {
    let others = join_all((0..4).map(|_| bench.reopen())).await;
    for program in &others {
        assert_eq!(program.subscription_states().await.unwrap(), []);
    }
}
