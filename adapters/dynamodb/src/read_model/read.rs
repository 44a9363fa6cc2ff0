//! Reads of single rows and positions, and lists of rows by pages.
use super::{
    IndexQuery, ReadModelError, ReadModelRow,
    decode::{self, Stored},
    encode::At,
    location::Location,
};
use crate::{
    attributes::{Attributes, text},
    client::Connection,
    error::Failure,
};
use aws_sdk_dynamodb::operation::query::builders::QueryFluentBuilder;
use foldstream::StreamId;
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};

/// The name of the index, and its key attributes.
pub(super) const INDEX: (&str, [&str; 2]) = ("rows", ["ip", "is"]);

/// Reads a row.
pub(super) async fn row<T: ReadModelRow>(
    connection: &Connection,
    location: &Location<T>,
    key: &str,
    is_consistent: bool,
) -> Result<Stored<T>, ReadModelError> {
    location.check_key("the key of a row", key)?;
    let item = get(connection, location, location.row(key), None, is_consistent).await?;
    decode::row(location, key, item)
}

/// Reads the position of a stream.
pub(super) async fn position<T: ReadModelRow>(
    connection: &Connection,
    location: &Location<T>,
    stream: &StreamId,
) -> Result<Option<At>, ReadModelError> {
    let key = location.position(stream);
    let item = get(connection, location, key, Some("v, c, f"), true).await?;
    decode::position(location, stream, item)
}

async fn get<T: ReadModelRow>(
    connection: &Connection,
    location: &Location<T>,
    key: Attributes,
    attributes: Option<&str>,
    is_consistent: bool,
) -> Result<Option<Attributes>, ReadModelError> {
    let request = connection
        .once()
        .get_item()
        .table_name(&location.table)
        .set_key(Some(key))
        .set_projection_expression(attributes.map(Into::into))
        .consistent_read(is_consistent);
    let place = connection.at("GetItem", &location.table);
    let answer = connection.send(place, || request.clone().send()).await;
    let answer = answer.map_err(|e| failed(location, Failure::of(e, place)))?;
    Ok(answer.item)
}

/// Lists all rows, partition by partition.
pub(super) fn all<'a, T: ReadModelRow>(
    connection: &'a Connection,
    location: Location<T>,
    is_consistent: bool,
) -> impl Stream<Item = Result<(String, T), ReadModelError>> + Send + 'a {
    let partitions = location.row_partitions();
    let table = location.table.clone();
    let requests = partitions.map(move |partition| {
        connection
            .once()
            .query()
            .table_name(&table)
            .key_condition_expression("pk = :pk")
            .expression_attribute_values(":pk", text(partition))
            .consistent_read(is_consistent)
    });
    rows(connection, location, requests)
}

/// Lists the rows of a partition of the index.
pub(super) fn indexed<'a, T: ReadModelRow>(
    connection: &'a Connection,
    location: Location<T>,
    query: &IndexQuery,
) -> impl Stream<Item = Result<(String, T), ReadModelError>> + Send + use<'a, T> {
    let request = connection.once().query().table_name(&location.table);
    let request = query.request(&location, request.index_name(INDEX.0));
    rows(connection, location, std::iter::once(request))
}

/// Reads the rows of queries, one page after the other.
fn rows<'a, T: ReadModelRow>(
    connection: &'a Connection,
    location: Location<T>,
    requests: impl Iterator<Item = QueryFluentBuilder> + Send + 'a,
) -> impl Stream<Item = Result<(String, T), ReadModelError>> + Send + 'a {
    let start = (location, requests, None);
    let pages = stream::try_unfold(start, move |(location, mut requests, current)| async move {
        let Some(request) = current.or_else(|| requests.next()) else {
            return Ok(None);
        };
        let (page, next) = page(connection, &location, request).await?;
        let read = page
            .into_iter()
            .filter_map(|item| decode::listed(&location, item).transpose());
        let read: Vec<_> = read.collect();
        Ok(Some((read, (location, requests, next))))
    });
    pages.map_ok(stream::iter).try_flatten().boxed()
}

/// Reads one page. Returns its items, and the request of the next page.
pub(super) async fn page<T: ReadModelRow>(
    connection: &Connection,
    location: &Location<T>,
    request: QueryFluentBuilder,
) -> Result<(Vec<Attributes>, Option<QueryFluentBuilder>), ReadModelError> {
    let place = connection.at("Query", &location.table);
    let answer = connection.send(place, || request.clone().send()).await;
    let answer = answer.map_err(|e| failed(location, Failure::of(e, place)))?;
    let next = answer
        .last_evaluated_key
        .filter(|key| !key.is_empty())
        .map(|key| request.set_exclusive_start_key(Some(key)));
    Ok((answer.items.unwrap_or_default(), next))
}

pub(super) fn failed<T>(location: &Location<T>, failure: Failure) -> ReadModelError {
    ReadModelError::of(failure, &location.model, &location.table)
}
