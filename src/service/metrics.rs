//! The metrics, whether the process is alive and ready, and the page: what collectors, balancers and
//! people ask for.

use bytes::BytesMut;

use super::http::{self, Reply, Request, Status};
use super::page::Page;
use super::{Desk, Next, Service};
use crate::metrics::MetricsWriter;
use crate::state::stats;

/// The text format of Prometheus.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

const PATHS: &str = "There are /, /metrics, /healthz and /readyz.\n";

/// The dialogue with one collector.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// The request that waits for the application's metrics.
    scrape: Option<Request>,
    /// The page that is made.
    page: Option<Page>,
}

impl Service for Metrics {
    fn serve(&mut self, desk: &mut Desk<'_>, input: &mut BytesMut, output: &mut BytesMut) -> Next {
        if self.page.is_some() {
            return self.make_page(desk, output);
        }
        let request = match http::take(input) {
            Ok(Some(request)) => request,
            Ok(None) => return Next::Input,
            Err((status, text)) => {
                let is_head = http::asks_for_head(input);
                Reply { is_head, ..Reply::error(status, text) }.write(output);
                return Next::Close;
            }
        };
        let (status, text) = match &request.path[..] {
            "/" | "/state" | "/metrics" | "/healthz" | "/readyz" if request.is_other => {
                (Status::MethodNotAllowed, "There are GET and HEAD.\n".into())
            }
            "/metrics" => {
                self.scrape = Some(request);
                return Next::Scrape;
            }
            "/healthz" => (Status::Ok, "alive\n".into()),
            "/readyz" => match desk.unready {
                None => (Status::Ok, "ready\n".into()),
                Some(why) => (Status::ServiceUnavailable, format!("not ready: {why}\n")),
            },
            _ => match Page::begin(&request) {
                Some(page) => {
                    self.page = Some(page);
                    return self.make_page(desk, output);
                }
                None => (Status::NotFound, PATHS.to_owned()),
            },
        };
        answer(&Reply::to(&request, status, &text), output)
    }

    fn scraped(
        &mut self,
        desk: &mut Desk<'_>,
        application: Option<&MetricsWriter>,
        output: &mut BytesMut,
    ) -> Next {
        let Some(request) = self.scrape.take() else { return Next::Close };
        let Some(application) = application else {
            let text = "The metrics of the application panicked.\n";
            return answer(&Reply::to(&request, Status::InternalError, text), output);
        };
        let mut text = stats(&desk.shared.counters).prometheus().to_string();
        text.push_str(application.as_str());
        let reply = Reply { content_type: TEXT_FORMAT, ..Reply::to(&request, Status::Ok, &text) };
        answer(&reply, output)
    }
}

impl Metrics {
    fn make_page(&mut self, desk: &Desk<'_>, output: &mut BytesMut) -> Next {
        let Some(page) = &mut self.page else { return Next::Input };
        if !page.go_on(desk, output) {
            return Next::More;
        }
        let closes = page.closes();
        self.page = None;
        if closes { Next::Close } else { Next::Answered }
    }
}

fn answer(reply: &Reply<'_>, output: &mut BytesMut) -> Next {
    reply.write(output);
    if reply.closes { Next::Close } else { Next::Answered }
}
