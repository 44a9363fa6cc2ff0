//! The table of a model: who creates it, and which errors say what is wrong with it.
use super::{Notebook, Process, World, model, notebook, noted, typed};
use crate::support::{Fate, Server, chain};
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType,
};
use foldstream::runner::{ErrorClass, ModelId, Projector as _};
use foldstream_dynamodb::{DynamoDbConfig, ReadModelError, ReadModelRow};

#[tokio::test]
async fn a_model_without_a_table_says_how_to_make_it() {
    let server = Server::start();
    let rows = server.stores().await.read_model::<Notebook>();
    let error = rows.get(&model(), "notebook#1").await.unwrap_err();
    assert!(
        error.to_string().contains("ReadModel::create_table"),
        "{error}"
    );
    let error = rows.reset(&model()).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Fatal);
    assert!(matches!(typed(&error), ReadModelError::NoTable { .. }));
    rows.create_table(&model()).await.unwrap();
    assert_eq!(rows.get(&model(), "notebook#1").await.unwrap(), None);
}

#[tokio::test]
async fn several_processes_may_prepare_a_model_at_the_same_time_and_again() {
    let server = Server::start();
    let stores = server.stores().await;
    let all = (0..8).map(|_| {
        let rows = stores.read_model::<Notebook>();
        async move { rows.create_table(&model()).await }
    });
    futures::future::try_join_all(all).await.unwrap();
    stores
        .read_model::<Notebook>()
        .create_table(&model())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_missing_permission_is_named() {
    let world = World::new().await;
    let cases = [
        ("DescribeTable", "DescribeTable on table events-models"),
        ("CreateTable", "CreateTable on table events-models-notes.g1"),
    ];
    for (denied, named) in cases {
        let process: Process<Notebook> = world
            .process_over(move |call| match call.operation == denied {
                true => Fate::error(400, "AccessDeniedException", "no"),
                false => Fate::Pass,
            })
            .await;
        let rows = match denied {
            "CreateTable" => process.rows.clone().with_own_tables(),
            _ => process.rows.clone(),
        };
        let error = rows.create_table(&model()).await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Fatal);
        let text = chain(&error);
        for hint in [named, "dynamodb:CreateTable", "deployment step"] {
            assert!(text.contains(hint), "{text}");
        }
    }
}

#[tokio::test]
async fn a_foreign_table_under_the_name_is_refused() {
    let server = Server::start();
    let stores = server.stores().await;
    let key = |name| {
        let attribute = AttributeDefinition::builder().attribute_name(name);
        let attribute = attribute.attribute_type(ScalarAttributeType::S);
        let element = KeySchemaElement::builder().attribute_name(name);
        let element = element.key_type(KeyType::Hash);
        (attribute.build().unwrap(), element.build().unwrap())
    };
    let (attribute, element) = key("id");
    let create = stores.client().create_table().table_name("events-models");
    let create = create.billing_mode(BillingMode::PayPerRequest);
    let create = create.attribute_definitions(attribute).key_schema(element);
    create.send().await.unwrap();
    let error = stores.read_model::<Notebook>().create_table(&model()).await;
    let error = error.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Fatal);
    assert!(
        chain(&error).contains("its key is [\"id\"]"),
        "{}",
        chain(&error)
    );
}

#[tokio::test]
async fn generations_may_have_tables_of_their_own() {
    let world = World::new().await;
    let process: Process<Notebook> = world.process().await;
    let rows = process.rows.clone().with_own_tables();
    rows.create_table(&model()).await.unwrap();
    let ctx = super::context(&notebook(1), 1);
    rows.project(&noted(1), &ctx).await.unwrap();
    rows.flush(&model()).await.unwrap();
    assert!(rows.get(&model(), "notebook#1").await.unwrap().is_some());
    assert_eq!(process.get("notebook#1").await, None);
    let stores = world.stores().await;
    let tables = stores.client().list_tables().send().await.unwrap();
    assert!(
        tables
            .table_names()
            .contains(&"events-models-notes.g1".into())
    );
}

#[tokio::test]
async fn names_that_cannot_be_stored_are_refused_before_any_request() {
    /// Rows with a name that would be read as part of the key.
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Misnamed;
    impl ReadModelRow for Misnamed {
        const NAME: &'static str = "a/b";
        type Events = super::NoteEvent;
        fn apply(
            _: &mut Option<Self>,
            _: &super::NoteEvent,
            _: &foldstream::runner::EventContext,
        ) -> foldstream::runner::HandlerResult {
            Ok(())
        }
    }
    let world = World::new().await;
    let process: Process<Misnamed> = world.process().await;
    let error = process.rows.create_table(&model()).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Permanent);
    assert!(matches!(error, ReadModelError::Invalid { .. }), "{error}");
    let long: Process<Notebook> = world.process().await;
    let long = long.rows.with_own_tables();
    let error = long.create_table(&ModelId::new("x".repeat(250), 1)).await;
    let error = error.unwrap_err();
    assert!(error.to_string().contains("DynamoDB takes 255"), "{error}");
    assert!(process.operations().is_empty());
    let config = DynamoDbConfig::default().with_prefix("shop-");
    assert_eq!(config.read_models_table(), "shop-events-models");
}
