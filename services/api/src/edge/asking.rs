//! Questions to the signer, many in one call: while calls are under way, what comes in waits for the next.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use certctl_contract::{
    query::NoParams,
    signer::{AnswerOcsp, OcspAnswer, OcspQuestion, OcspQuestions},
};
use certctl_model::id::IssuerId;
use tokio::sync::oneshot;

use super::{answers::Moment, ocsp::base64_text};
use crate::app::App;

/// Calls at once: while the signer works on one, the next is on its way.
const CALLS: usize = 2;
/// Questions in a call: so many take the signer a few milliseconds.
const MOST: usize = 64;
/// Who waits at most. Beyond that, "try later" is said at once: a queue that grows answers nobody in time.
const MOST_WAITING: usize = 4_096;

/// A client that waits longer has given up.
const PATIENCE: Duration = Duration::from_secs(5);

const _: () = assert!(MOST <= OcspQuestions::MOST);

/// What came of a question, or nothing when the signer could not be asked.
pub(super) type Heard = Option<Arc<(Moment, OcspAnswer)>>;

/// What is asked: an issuer's id, and DER of a request.
type Question = (IssuerId, Box<[u8]>);

/// The questions that wait.
#[derive(Default)]
pub struct Asking(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    order: VecDeque<Question>,
    waiting: HashMap<Question, Vec<oneshot::Sender<Heard>>>,
    who: usize,
    calls: usize,
}

/// Asks, and waits for the answer. Whoever asks the same meanwhile gets the same.
pub(super) async fn ask(app: &Arc<App>, issuer: &IssuerId, request: &[u8]) -> Heard {
    let (sender, receiver) = oneshot::channel();
    let starts = {
        let mut queue = app.asking.0.lock().expect("nobody panics with the lock");
        if queue.who >= MOST_WAITING {
            return None;
        }
        queue.who += 1;
        let question: Question = (issuer.clone(), request.into());
        match queue.waiting.get_mut(&question) {
            Some(others) => others.push(sender),
            None => {
                queue.order.push_back(question.clone());
                queue.waiting.insert(question, vec![sender]);
            }
        }
        let starts = queue.calls < CALLS;
        queue.calls += usize::from(starts);
        starts
    };
    if starts {
        // Not this request's own work: its client may go away.
        let asker = app.clone();
        app.tasks.spawn("ocsp", async move {
            let mut calling = Calling {
                app: asker,
                ended: false,
            };
            while call(&mut calling).await {}
        });
    }
    receiver.await.ok().flatten()
}

/// One of the [`CALLS`]; given back even by one that panics.
struct Calling {
    app: Arc<App>,
    ended: bool,
}

impl Drop for Calling {
    fn drop(&mut self) {
        if !self.ended
            && let Ok(mut queue) = self.app.asking.0.lock()
        {
            queue.calls -= 1;
        }
    }
}

/// One call about all that waits, or as much as goes into one. Says whether there may be more.
async fn call(calling: &mut Calling) -> bool {
    let app = calling.app.clone();
    // Before the questions are put: news that comes from here on ends their answers.
    let moment = app.answers.moment();
    let (mut asked, mut questions) = (Vec::new(), Vec::new());
    {
        let mut queue = app.asking.0.lock().expect("nobody panics with the lock");
        while let Some(question) = (asked.len() < MOST).then(|| queue.order.pop_front()).flatten() {
            let who = queue.waiting.remove(&question).unwrap_or_default();
            queue.who -= who.len();
            asked.push(who);
            questions.push(question);
        }
        if asked.is_empty() {
            // Under the same lock: who asks next starts a call.
            queue.calls -= 1;
            calling.ended = true;
            return false;
        }
    }
    let answers = answers(&app, &questions).await;
    for (who, answer) in asked.into_iter().zip(answers) {
        let heard = answer.map(|answer| Arc::new((moment, answer)));
        for one in who {
            // Who has gone needs no answer.
            let _gone = one.send(heard.clone());
        }
    }
    true
}

/// What Redis has, and the signer's answers to the rest.
async fn answers(app: &App, questions: &[Question]) -> Vec<Option<OcspAnswer>> {
    let mut looked = match &app.answers.shelf {
        Some(shelf) => shelf.look(questions, app.clock.now()).await,
        None => None,
    };
    let found = looked.as_mut().map(|looked| std::mem::take(&mut looked.found));
    let found: Vec<Option<OcspAnswer>> = match found {
        Some(found) => found.into_iter().map(|found| found.map(OcspAnswer::Signed)).collect(),
        None => vec![None; questions.len()],
    };
    let missing: Vec<OcspQuestion> = questions
        .iter()
        .zip(&found)
        .filter(|(_, found)| found.is_none())
        .map(|((issuer, request), _)| OcspQuestion {
            issuer_id: issuer.clone(),
            request: base64_text(request),
        })
        .collect();
    let count = (missing.len(), questions.len() - missing.len());
    metrics::counter!("ocsp_answers_total", "from" => "redis").increment(count.1 as u64);
    metrics::counter!("ocsp_answers_total", "from" => "signer").increment(count.0 as u64);
    let mut signed = sign(app, missing).await.into_iter();
    let answers: Vec<Option<OcspAnswer>> = found
        .iter()
        .map(|found| if found.is_none() { signed.next().flatten() } else { None })
        .collect();
    if let (Some(shelf), Some(looked)) = (&app.answers.shelf, looked) {
        shelf.put(looked, &answers, app.clock.now()).await;
    }
    found
        .into_iter()
        .zip(answers)
        .map(|(found, signed)| found.or(signed))
        .collect()
}

/// The signer's answers, as many as questions; nothing in the place of those it did not give.
async fn sign(app: &App, questions: Vec<OcspQuestion>) -> Vec<Option<OcspAnswer>> {
    let count = questions.len();
    if count == 0 {
        return Vec::new();
    }
    metrics::histogram!("ocsp_questions_per_call").record(count as f64);
    let call = app
        .signer
        .call_with_timeout::<AnswerOcsp>(NoParams, NoParams, OcspQuestions { questions }, PATIENCE);
    match call.await {
        Ok(all) if all.answers.len() == count => all.answers.into_iter().map(Some).collect(),
        Ok(_) => {
            tracing::error!("the signer left OCSP questions without an answer");
            vec![None; count]
        }
        Err(error) => {
            tracing::debug!("the signer could not be asked: {error}");
            vec![None; count]
        }
    }
}
