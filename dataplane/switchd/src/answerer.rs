// SPDX-License-Identifier: Apache-2.0
//! The thread that answers guests: DHCP, router advertisements, DNS and metadata.
//!
//! It is dull on purpose: it takes a question from the worker, asks `plinth-answers`, and gives the
//! answer back; it sends and receives what names of other people take, and asks whoever answers for
//! the node what guests ask of their metadata; it says what is due. When
//! the worker has no buffer for an answer, the answer is lost and counted, and the guest asks again.

use crate::inquiries::{self, Inquiries};
use crate::upstream::Line;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use plinth_answers::{
    Answer, Checks, Directory, Effect, Forwarder, Opinions, Question, Schedule, Segment, Send,
    Service, StreamId, Streams, Ticket, WantedCheck, wanted_checks,
};
use plinth_ids::{Moment, PortId};
use plinth_ports::AnsweringPort;
use plinth_rt::Waker;
use plinth_switch_api::{AnswerCounts, MetadataAsker, SwitchConfig};
use plinth_vswitch::Origin;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Questions, advertisements and late servers that are looked at between two looks at the sockets.
const ROUND: usize = 64;

/// Sockets that can be ready at once.
const EVENTS: usize = 64;

const QUESTIONS: Token = Token(usize::MAX - 1);

/// The thread, as the others see it.
#[derive(Debug)]
pub(crate) struct Answerer {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    /// The newest configuration, until the thread takes it.
    next: Mutex<Option<(Directory, Vec<WantedCheck>)>>,
    /// What is thought of backends, and whether the switch was told.
    opinions: Mutex<(Arc<Opinions>, bool)>,
    waker: Waker,
    is_over: AtomicBool,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    questions: AtomicU64,
    answers: AtomicU64,
    forwarded: AtomicU64,
    metadata: AtomicU64,
    advertisements: AtomicU64,
    lost: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Answerer {
    /// `metadata` is the socket of whoever answers for the node; it may come later.
    ///
    /// # Errors
    /// When the process has no descriptor left, or no thread.
    pub(crate) fn start(port: AnsweringPort, metadata: PathBuf) -> io::Result<Arc<Self>> {
        let shared = Arc::new(Shared {
            next: Mutex::default(),
            opinions: Mutex::default(),
            waker: port.waker(),
            is_over: AtomicBool::new(false),
            counts: Counts::default(),
        });
        let mut own = Own::new(port, metadata, Arc::clone(&shared))?;
        let thread = std::thread::Builder::new().name("answers".to_owned());
        let thread = thread.spawn(move || own.run())?;
        Ok(Arc::new(Self { shared, thread: Mutex::new(Some(thread)) }))
    }

    /// Guests are answered by this configuration from now on, which the switch has taken.
    pub(crate) fn publish(&self, config: &SwitchConfig) {
        let next = (Directory::new(config), wanted_checks(config));
        *self.shared.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(next);
        self.shared.waker.wake();
    }

    /// What is thought of the backends that are here.
    pub(crate) fn opinions(&self) -> Arc<Opinions> {
        let opinions = self.shared.opinions.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&opinions.0)
    }

    /// Whether that has changed since it was asked last.
    pub(crate) fn take_news(&self) -> bool {
        let mut opinions = self.shared.opinions.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut opinions.1)
    }

    pub(crate) fn counts(&self) -> AnswerCounts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counts { questions, answers, forwarded, metadata, advertisements, lost } =
            &self.shared.counts;
        AnswerCounts {
            questions: of(questions),
            answers: of(answers),
            forwarded: of(forwarded),
            metadata: of(metadata),
            advertisements: of(advertisements),
            lost: of(lost),
        }
    }

    /// Ends the thread and waits for it.
    pub(crate) fn stop(&self) {
        self.shared.is_over.store(true, Ordering::Release);
        self.shared.waker.wake();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic has ended the process already.
            let _ = thread.join();
        }
    }
}

/// Who waits for an answer from upstream.
#[derive(Clone, Copy, Debug)]
enum Asker {
    Datagram(Origin),
    /// A connection, which is gone if it is not known any more.
    Stream(StreamId),
}

/// What is the thread's own.
struct Own {
    port: AnsweringPort,
    shared: Arc<Shared>,
    poll: Poll,
    directory: Directory,
    schedule: Schedule,
    forwarder: Forwarder<Asker>,
    /// By ticket.
    lines: Vec<Option<Line>>,
    streams: Streams<Origin>,
    checks: Checks,
    inquiries: Inquiries,
    /// Ids of questions are drawn here.
    entropy: File,
    began: Instant,
}

impl Own {
    fn new(port: AnsweringPort, metadata: PathBuf, shared: Arc<Shared>) -> io::Result<Self> {
        let poll = Poll::new()?;
        let raw = port.as_fd().as_raw_fd();
        poll.registry().register(&mut SourceFd(&raw), QUESTIONS, Interest::READABLE)?;
        let mut entropy = File::open("/dev/urandom")?;
        let mut seed = [0; 8];
        entropy.read_exact(&mut seed)?;
        Ok(Self {
            port,
            shared,
            poll,
            directory: Directory::default(),
            schedule: Schedule::new(u64::from_le_bytes(seed)),
            forwarder: Forwarder::default(),
            lines: Vec::new(),
            streams: Streams::new(u64::from_be_bytes(seed)),
            checks: Checks::new(u64::from_le_bytes(seed).rotate_left(32)),
            inquiries: Inquiries::new(metadata),
            entropy,
            began: Instant::now(),
        })
    }

    fn now(&self) -> Moment {
        self.began.elapsed()
    }

    fn run(&mut self) {
        let mut events = Events::with_capacity(EVENTS);
        while !self.shared.is_over.load(Ordering::Acquire) {
            self.take_configuration();
            let is_busy = self.take_questions() | self.advertise() | self.give_up_the_late();
            self.go_on_with_streams();
            self.check_backends();
            let due = [
                self.schedule.deadline(),
                self.forwarder.deadline(),
                self.streams.deadline(),
                self.inquiries.deadline(),
                self.checks.deadline(),
            ];
            let due = due.into_iter().flatten().min();
            let wait = match is_busy {
                true => Some(Duration::ZERO),
                false => due.map(|due| due.saturating_sub(self.now())),
            };
            match self.poll.poll(&mut events, wait) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    // A thread that cannot sleep must not spin; guests are answered more slowly.
                    tracing::error!(%error, "questions of guests cannot be waited for");
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            for event in events.iter().filter(|event| event.token() != QUESTIONS) {
                match inquiries::place(event.token()) {
                    Some(place) => self.hear_of(place),
                    None => self.receive(Ticket(event.token().0)),
                }
            }
        }
    }

    fn take_configuration(&mut self) {
        let next = self.shared.next.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((next, checks)) = next {
            self.checks.set(self.began.elapsed(), checks);
            self.schedule.set(self.began.elapsed(), next.advertised());
            self.streams.retain(|port, origin, service| {
                next.still_serves(port, (origin.vni, origin.mac), service)
            });
            self.directory = next;
        }
    }

    /// Answers a round of questions. Says whether there may be more.
    fn take_questions(&mut self) -> bool {
        for _ in 0..ROUND {
            let (origin, answer) = {
                let Some(question) = self.port.take() else { return false };
                count(&self.shared.counts.questions);
                let origin = question.origin();
                // The worker may be of another configuration than this thread.
                if self.directory.nic(origin.port) != Some((origin.vni, origin.mac)) {
                    continue;
                }
                if self.checks.hear(origin.port, question.frame()) {
                    continue;
                }
                (origin, self.directory.answer(origin.port, question.frame()))
            };
            match answer {
                Answer::Reply(frame) => self.say(origin, &frame),
                Answer::Forward(question) => {
                    self.ask_upstream(Asker::Datagram(origin), origin.port, question);
                }
                Answer::Segment(segment) => self.converse(origin, &segment),
                Answer::Silence(_) => {}
            }
        }
        true
    }

    fn check_backends(&mut self) {
        let now = self.now();
        self.checks.tick(now);
        while let Some(check) = self.checks.next_frame() {
            let origin = Origin::unasked(check.port, check.vni, check.mac);
            if self.port.say(origin, &check.frame).is_err() {
                self.checks.unsaid(now, &check);
            }
        }
        if let Some(news) = self.checks.take_news() {
            let mut opinions = self.shared.opinions.lock().unwrap_or_else(PoisonError::into_inner);
            if *opinions.0 != news {
                *opinions = (Arc::new(news), true);
            }
        }
    }

    fn ask_upstream(&mut self, asker: Asker, port: PortId, question: Question) {
        let (now, id) = (self.now(), self.draw());
        match self.forwarder.ask(now, (asker, port), question, id) {
            Ok(send) => {
                count(&self.shared.counts.forwarded);
                self.send(send);
            }
            Err(_) => count(&self.shared.counts.lost),
        }
    }

    fn converse(&mut self, origin: Origin, segment: &Segment) {
        let now = self.now();
        let streams = &mut self.streams;
        if plinth_obs::contain(|| streams.take(now, (origin, origin.port), segment)).is_err() {
            tracing::error!(port = %origin.port, "the connections of a guest are given up");
            self.streams.forget(origin.port);
        }
        self.carry_out();
    }

    fn go_on_with_streams(&mut self) {
        let now = self.now();
        while let Some((stream, response)) = self.inquiries.late(now) {
            self.respond(stream, response);
        }
        if self.streams.deadline().is_some_and(|due| due <= now) {
            let streams = &mut self.streams;
            if plinth_obs::contain(|| streams.tick(now)).is_err() {
                tracing::error!("the connections of all guests are given up");
                self.streams.retain(|_, _, _| false);
            }
        }
        self.carry_out();
    }

    /// Does what the conversations have come to.
    fn carry_out(&mut self) {
        while let Some(effect) = self.streams.next_effect() {
            match effect {
                Effect::Say(origin, frame) => self.say(origin, &frame),
                Effect::Ask { stream, origin, service: Service::Dns, request } => {
                    match self.directory.answer_stream(origin.port, &request) {
                        Answer::Reply(reply) => self.respond(stream, reply),
                        Answer::Forward(question) => {
                            self.ask_upstream(Asker::Stream(stream), origin.port, question);
                        }
                        // It is no question, and there is no other that can be told.
                        Answer::Segment(_) | Answer::Silence(_) => self.respond(stream, Vec::new()),
                    }
                }
                Effect::Ask { stream, origin, service: Service::Metadata, request } => {
                    count(&self.shared.counts.metadata);
                    let Origin { port, vni, mac, .. } = origin;
                    let (now, asker) = (self.now(), MetadataAsker { port, vni, mac });
                    let asked =
                        self.inquiries.ask(self.poll.registry(), now, stream, asker, &request);
                    if let Err(error) = asked {
                        tracing::debug!(%port, %error, "nobody answers for the node");
                        self.respond(stream, inquiries::UNAVAILABLE.to_vec());
                    }
                }
            }
        }
    }

    /// Whoever answers for the node has said something.
    fn hear_of(&mut self, place: usize) {
        if let Some((stream, response)) = self.inquiries.receive(place) {
            self.respond(stream, response);
            self.carry_out();
        }
    }

    fn respond(&mut self, stream: StreamId, response: Vec<u8>) {
        let now = self.now();
        let streams = &mut self.streams;
        if plinth_obs::contain(|| streams.answer(now, stream, response)).is_err() {
            tracing::error!("the connections of all guests are given up");
            self.streams.retain(|_, _, _| false);
        }
    }

    fn say(&self, origin: Origin, frame: &[u8]) {
        let counts = &self.shared.counts;
        count(if self.port.say(origin, frame).is_ok() { &counts.answers } else { &counts.lost });
    }

    fn advertise(&mut self) -> bool {
        for _ in 0..ROUND {
            let Some(port) = self.schedule.take_due(self.now()) else { return false };
            self.advertise_to(port);
        }
        true
    }

    fn advertise_to(&self, port: PortId) {
        let said = self.directory.nic(port).zip(self.directory.advertisement(port));
        let Some(((vni, mac), frame)) = said else { return };
        // What finds no buffer is said again in its time.
        if self.port.say(Origin::unasked(port, vni, mac), &frame).is_ok() {
            count(&self.shared.counts.advertisements);
        }
    }

    fn give_up_the_late(&mut self) -> bool {
        for _ in 0..ROUND {
            let Some(ticket) = self.forwarder.late(self.now()) else { return false };
            self.ask_next(ticket);
        }
        true
    }

    /// The ticket's server has not answered, or cannot.
    fn ask_next(&mut self, ticket: Ticket) {
        let (now, id) = (self.now(), self.draw());
        match self.forwarder.failed(now, ticket, id) {
            Some(send) => self.send(send),
            None => {
                self.close(ticket);
                count(&self.shared.counts.lost);
            }
        }
    }

    /// Sends from a new socket. A server that cannot be reached is given up at once.
    fn send(&mut self, send: Send) {
        let mut next = Some(send);
        while let Some(send) = next {
            self.close(send.ticket);
            let error = match self.open(&send) {
                Ok(()) => return,
                Err(error) => error,
            };
            tracing::debug!(server = %send.server, %error, "a name server cannot be asked");
            let (now, id) = (self.now(), self.draw());
            next = self.forwarder.failed(now, send.ticket, id);
        }
        count(&self.shared.counts.lost);
    }

    fn open(&mut self, send: &Send) -> io::Result<()> {
        let Ticket(place) = send.ticket;
        let line = Line::open(send, self.poll.registry(), Token(place))?;
        if self.lines.len() <= place {
            self.lines.resize_with(place + 1, || None);
        }
        self.lines[place] = Some(line);
        Ok(())
    }

    fn close(&mut self, ticket: Ticket) {
        if let Some(line) = self.lines.get_mut(ticket.0) {
            // The system forgets that it was waited for when it is closed.
            *line = None;
        }
    }

    fn receive(&mut self, ticket: Ticket) {
        loop {
            let Some(Some(line)) = self.lines.get_mut(ticket.0) else { return };
            match line.next() {
                Ok(Some(message)) => {
                    if let Some(reply) = self.forwarder.answered(ticket, &message) {
                        match reply.origin {
                            Asker::Datagram(origin) => self.say(origin, &reply.frame),
                            Asker::Stream(stream) => {
                                self.respond(stream, reply.frame);
                                self.carry_out();
                            }
                        }
                    }
                    if !self.forwarder.is_under_way(ticket) {
                        return self.close(ticket);
                    }
                }
                Ok(None) => return,
                // As where nobody listens.
                Err(_) => return self.ask_next(ticket),
            }
        }
    }

    fn draw(&mut self) -> [u8; 2] {
        let mut id = [0; 2];
        // It cannot fail once it is open; and if it did, the port is still a guess.
        let _ = self.entropy.read_exact(&mut id);
        id
    }
}
