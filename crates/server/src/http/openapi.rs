//! The OpenAPI document of API v1.
//!
//! - What it lists is what the router serves: both are made from the table in [`super`], and a test compares method and path of each.
//! - Every operation may end in a [`Problem`]; clients decide by its `code`.

use utoipa::{
    Modify, OpenApi,
    openapi::{
        ContentBuilder, Paths, Ref, RefOr, Response, ResponseBuilder, Schema,
        path::Operation,
        security::{SecurityRequirement, SecurityScheme},
    },
};
use wharf_api::v1;

use super::Described;
use crate::{
    join::{__path_join, __path_renew},
    server::__path_admit_server,
};

const CERTIFICATE: &str = "certificate";

/// What is not among the routes that [`super::router`] serves, and everything that is said of all of them.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Wharf API",
        description = "What people and tools ask a cluster for. Times are milliseconds since the epoch. Requests refuse unknown fields; \
                       answers may grow, so ignore what you do not know. Specifications of apps are in the vocabulary of the Compose Specification.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    paths(join, renew, admit_server),
    components(schemas(v1::Problem, v1::ExecRequest)),
    modifiers(&Common)
)]
struct Document;

struct Common;

impl Modify for Common {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        document.merge(Described::openapi());
        // Servers are where a context says, so there is no list of them; every call but joining shows a certificate.
        let components = document.components.get_or_insert_default();
        components.add_security_scheme(
            CERTIFICATE,
            SecurityScheme::MutualTls {
                description: Some("a certificate of the cluster's own authority, as contexts hold it".into()),
                deprecated: None,
                extensions: None,
            },
        );
        document.security = Some(vec![SecurityRequirement::new::<_, _, String>(CERTIFICATE, [])]);
        for (method, path, operation) in operations(&mut document.paths) {
            operation.operation_id = Some(name(method, path));
            let responses = &mut operation.responses.responses;
            responses.entry("default".into()).or_insert_with(|| RefOr::T(problem()));
            for (status, response) in responses {
                if let RefOr::T(response) = response
                    && response.description.is_empty()
                {
                    response.description = describe(status).into();
                }
            }
            if path.ends_with("/join") {
                operation.security = Some(Vec::new());
            }
        }
    }
}

/// What OpenAPI wants said of every answer, where the handler does not say more.
fn describe(status: &str) -> &'static str {
    match status {
        "404" => "there is no such thing",
        "409" => "something else stands in the way, or the state has moved",
        status if status.starts_with('2') => "done",
        _ => "why it was not carried out",
    }
}

fn problem() -> Response {
    let schema: RefOr<Schema> = Ref::from_schema_name("Problem").into();
    let content = ContentBuilder::new().schema(Some(schema)).build();
    ResponseBuilder::new()
        .description("why it was not carried out")
        .content("application/json", content)
        .build()
}

fn operations(paths: &mut Paths) -> impl Iterator<Item = (&'static str, &String, &mut Operation)> {
    paths.paths.iter_mut().flat_map(|(path, item)| {
        let all = [
            ("get", &mut item.get),
            ("post", &mut item.post),
            ("put", &mut item.put),
            ("patch", &mut item.patch),
            ("delete", &mut item.delete),
        ];
        all.into_iter().filter_map(move |(method, operation)| Some((method, path, operation.as_mut()?)))
    })
}

/// `get /v1/nodes/{node}` is `get_nodes_node`: handlers' own names are unique in their modules only.
fn name(method: &str, path: &str) -> String {
    let words = path.split('/').skip(2).map(|word| word.trim_matches(['{', '}']));
    std::iter::once(method).chain(words).collect::<Vec<_>>().join("_")
}

/// The OpenAPI 3.1 document of everything a server answers, as indented JSON that is the same whenever the API is.
pub fn openapi_json() -> String {
    Document::openapi().to_pretty_json().expect("a document of strings and numbers has a JSON form")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use wharf_api::transport::wire;

    use super::*;

    #[test]
    fn the_document_and_the_routers_agree() {
        let document: serde_json::Value = serde_json::from_str(&openapi_json()).unwrap();
        let described: BTreeSet<(String, String)> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, item)| {
                item.as_object().unwrap().keys().map(move |method| (method.clone(), path.clone()))
            })
            .collect();
        let outside = [wire::JOIN, wire::RENEW, crate::server::JOIN_SERVER].map(|path| ("post", path));
        let served: BTreeSet<(String, String)> = super::super::routes()
            .into_iter()
            .map(|route| (route.method, route.path))
            .chain(outside)
            .map(|(method, path)| (method.to_owned(), path.to_owned()))
            .collect();
        assert_eq!(described, served);
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let text = openapi_json();
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        let targets: Vec<_> =
            text.split("\"$ref\": \"#").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert!(targets.len() > 20, "{targets:?}");
        for target in targets {
            assert!(document.pointer(target).is_some(), "{target} is nowhere");
        }
    }

    #[test]
    fn every_operation_may_end_in_a_problem_and_only_joining_needs_no_certificate() {
        let mut document = Document::openapi();
        let mut open = BTreeSet::new();
        let mut names = BTreeSet::new();
        for (_, path, operation) in operations(&mut document.paths) {
            assert!(
                names.insert(operation.operation_id.clone()),
                "{path}: {:?} is not unique",
                operation.operation_id
            );
            assert!(operation.responses.responses.contains_key("default"), "{path}");
            for response in operation.responses.responses.values() {
                assert!(matches!(response, RefOr::T(response) if !response.description.is_empty()), "{path}");
            }
            if operation.security.as_ref().is_some_and(Vec::is_empty) {
                open.insert(path.clone());
            }
        }
        assert_eq!(open, BTreeSet::from([wire::JOIN.to_owned(), crate::server::JOIN_SERVER.to_owned()]));
    }
}
