//! What the access log says of one request, gathered while it is under way.
//!
//! - It is written when nobody holds it any more: by then the answer is over, whichever way it ended.
//! - Without a log there is none of it.

use std::{net::IpAddr, sync::Arc};

use http::{HeaderValue, Method, StatusCode, Uri, Version, header, request::Parts};
use parking_lot::Mutex;

use super::{
    Moment,
    serve::Conn,
    table::{Backend, Lease, Route},
};
use crate::access_log::Line;

/// One line, or nothing.
#[derive(Clone, Default)]
pub(crate) struct Entry(Option<Arc<Mutex<Request>>>);

struct Request {
    conn: Arc<Conn>,
    began: Moment,
    version: Version,
    method: Method,
    uri: Uri,
    host: Option<HeaderValue>,
    request_id: Option<HeaderValue>,
    route: Option<Arc<Route>>,
    backend: Option<Arc<Backend>>,
    attempts: u8,
    status: u16,
    /// Who asks.
    client: IpAddr,
    head: Option<Moment>,
    received: u64,
    sent: u64,
    why: &'static str,
}

impl Entry {
    /// Of a request that has just been read.
    pub(crate) fn of(conn: &Arc<Conn>, head: &Parts) -> Self {
        if !conn.worker.log.is_on() {
            return Self(None);
        }
        let host = head.headers.get(header::HOST).cloned();
        let of_target = || HeaderValue::try_from(head.uri.authority()?.as_str()).ok();
        let (request_id, route, backend, attempts, status, given, received, sent, why) = Default::default();
        Self(Some(Arc::new(Mutex::new(Request {
            conn: Arc::clone(conn),
            began: Moment::now(),
            version: head.version,
            method: head.method.clone(),
            uri: head.uri.clone(),
            host: host.or_else(of_target),
            request_id,
            route,
            backend,
            attempts,
            status,
            client: conn.address(),
            head: given,
            received,
            sent,
            why,
        }))))
    }

    fn note(&self, what: impl FnOnce(&mut Request)) {
        if let Some(entry) = &self.0 {
            what(&mut entry.lock());
        }
    }

    /// This is what tasks are told as its id.
    pub(crate) fn has_id(&self, id: Option<&HeaderValue>) {
        self.note(|entry| entry.request_id = id.cloned());
    }

    /// A proxy asks for this client.
    pub(crate) fn is_from(&self, client: IpAddr) {
        self.note(|entry| entry.client = client);
    }

    /// A task is asked.
    pub(crate) fn asks(&self, lease: &Lease) {
        self.note(|entry| {
            entry.attempts = entry.attempts.saturating_add(1);
            (entry.route, entry.backend) =
                (Some(Arc::clone(lease.route())), Some(Arc::clone(lease.backend())));
        });
    }

    /// The route that is meant, if nobody of it could be asked.
    pub(crate) fn is_for(&self, route: &Arc<Route>) {
        self.note(|entry| entry.route = Some(Arc::clone(route)));
    }

    /// The head of a task's answer is here.
    pub(crate) fn answered(&self, now: Moment) {
        self.note(|entry| entry.head = Some(now));
    }

    /// What the client is told.
    pub(crate) fn says(&self, status: StatusCode) {
        self.note(|entry| entry.status = status.as_u16());
    }

    /// Why it is not as usual.
    pub(crate) fn because(&self, why: &'static str) {
        self.note(|entry| entry.why = why);
    }

    /// Bytes of bodies, in all.
    pub(crate) fn passed(&self, received: u64, sent: u64) {
        self.note(|entry| (entry.received, entry.sent) = (received, sent));
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let text = |value: &Option<HeaderValue>| {
            value.as_ref().and_then(|it| it.to_str().ok().map(ToOwned::to_owned))
        };
        let (host, request_id) = (text(&self.host), text(&self.request_id));
        let protocol = match self.version {
            Version::HTTP_2 => "http/2",
            Version::HTTP_10 => "http/1.0",
            _ => "http/1.1",
        };
        self.conn.worker.log.log(&Line {
            route: self.route.as_ref().map(|route| &route.label),
            endpoint: self.backend.as_ref().map(|backend| &backend.label),
            protocol,
            client: self.client,
            host: host.as_deref().unwrap_or_default(),
            method: self.method.as_str(),
            path: self.uri.path(),
            status: self.status,
            received: self.received,
            sent: self.sent,
            head: self.head.map(|head| head.since(self.began)),
            took: Moment::now().since(self.began),
            attempts: self.attempts,
            request_id: request_id.as_deref().unwrap_or_default(),
            why: self.why,
        });
    }
}
