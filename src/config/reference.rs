//! Every key of `actors.toml`, once: type, default, effect. `docs/configuration.md` is printed from this table;
//! tests hold it to what the loader accepts and to the defaults in [`super::defaults`].

use Kind::*;

/// What a key takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Free text.
    Text,
    /// A template: `{{ }}` over the record.
    Template,
    /// An expression without braces.
    Expression,
    /// A duration with its unit.
    Duration,
    /// A size in bytes with its unit.
    Size,
    /// A whole number of at least this.
    Count(u64),
    /// `true` or `false`.
    Flag,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// `HOST:PORT` with a numeric host.
    Address,
    /// A file or folder, from the working directory if relative.
    Path,
    /// A list of rates.
    Rates,
    /// A list of texts.
    Texts,
    /// A table with names of one's own, each a template.
    Templates,
    /// `{ env = "NAME" }` or `{ file = "PATH" }`.
    Secret,
    /// Several forms, said in the effect.
    Forms(&'static str),
}

impl Kind {
    fn describe(self) -> String {
        match self {
            Text => "text".into(),
            Template => "template".into(),
            Expression => "expression".into(),
            Duration => "duration".into(),
            Size => "size".into(),
            Count(least) => format!("count ≥ {least}"),
            Flag => "true, false".into(),
            Choice(words) => words.join(", "),
            Address => "address:port".into(),
            Path => "path".into(),
            Rates => "list of rates".into(),
            Texts => "list of texts".into(),
            Templates => "table of templates".into(),
            Secret => "`{ env = … }` or `{ file = … }`".into(),
            Forms(forms) => forms.into(),
        }
    }
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Dotted path; `NAME` stands for a section's name, `[]` for each element of a list.
    pub path: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// Its default as the effective configuration shows it; "" for none, text in brackets for one that depends.
    pub default: &'static str,
    /// What it does, and what is traded for it.
    pub effect: &'static str,
}

const fn k(path: &'static str, kind: Kind, default: &'static str, effect: &'static str) -> Key {
    Key {
        path,
        kind,
        default,
        effect,
    }
}

const DOUBT: Kind = Choice(&["park", "resend", "verify"]);

/// The table, in the order of the manual.
#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    k("node.id", Text, "[host name]", "Name of the node, stable over restarts. The ledger notes it with everything the node does."),
    k("node.data", Path, "\"data\"", "Folder of the embedded log, the dedup store and counters. One process at a time; on a disk that is not shared."),
    k("node.memory", Size, "\"512MiB\"", "Bound over everything held: queues, retries, bookkeeping. At the bound the intake pauses and goes on by itself. Larger: more keys ready at once while partners are slow."),
    k("node.drain", Duration, "\"20s\"", "How long an orderly stop waits for requests in flight. What is still out then is in doubt at the next start. Keep it above the longest request timeout."),
    k("listen.admin", Address, "\"127.0.0.1:7070\"", "Control API, status and page. Any address but loopback needs `listen.token`."),
    k("listen.probes", Address, "", "Health and metrics on a port of their own, for a balancer or scraper that must not reach the control API."),
    k("listen.token", Secret, "", "Token that control requests must carry."),
    k("log.kind", Choice(&["embedded"]), "\"embedded\"", "Which log holds topics and ledger. `embedded`: on this machine, no server needed."),
    k("log.segment", Size, "\"64MiB\"", "Bytes of one preallocated segment of the journal. Larger: fewer files; smaller: space comes back sooner."),
    k("log.commit_gap", Duration, "\"400us\"", "Least time between two commits under load. Longer: more entries share one fdatasync (less disk work), and each delivery waits longer."),
    k("log.retention", Duration, "\"7d\"", "How long records of a topic are kept at least. A record goes once it is older than this and every route has passed it: finished it, or copied it into the ledger."),
    k("log.retention_bytes", Size, "", "Bytes above which a topic's records go before they are that old, the oldest first; never one that a route has not passed."),
    k("ledger.lease", Duration, "\"10s\"", "How long an intent's permission to send lasts, counted from before its commit was requested. Shorter: a taker of the work waits less; too short: a slow disk makes intents expire unsent."),
    k("ledger.payload_retention", Duration, "\"30d\"", "How long payloads of dead, parked and skipped messages are kept."),
    k("ledger.payload_bytes", Size, "\"4GiB\"", "Bytes of kept payloads. At the bound the oldest skipped and dead ones go first, parked never."),
    k("ledger.readable_id", Count(0), "40", "Bytes of the readable ID kept with an entry, so that `message ID` finds it by its own name. 0 keeps none: smaller ledger."),
    k("ledger.waiting_after", Duration, "\"10m\"", "A message that must wait longer than this is copied into the ledger and no longer holds its route's position. Shorter: restarts read less again; longer: fewer bytes written during an outage."),
    k("ledger.position_every", Duration, "\"1s\"", "How often positions that rest on no outcome (duplicates, filtered records) are written."),
    k("ledger.checkpoint_entries", Count(1), "1000000", "Ledger entries between two checkpoints. Fewer: a start after a crash reads less; more: fewer large writes."),
    k("ledger.checkpoint_every", Duration, "\"10s\"", "And at the latest so long after the one before, if anything was written. It bounds what a start after a crash reads of a slow day."),
    k("actors.threads", Count(0), "0", "Arbiter threads that run the actors; 0 is one a core."),
    k("actors.busy_keys", Count(1), "1000", "Subpartition actors at once in one partition: keys whose messages are in flight or waiting for a slot. Key 1,001 waits its turn. Of one partition never more than twice the partner's `concurrency` (at least 16). Those that wait for a slot are few: their share of half the `concurrency`, 4 to 16 of each partition. Must exceed rate x latency ÷ partitions."),
    k("actors.requests", Count(1), "10000", "Requests in flight of the node over all partners. Each needs a file descriptor."),
    k("actors.read_chunk", Size, "\"64KiB\"", "Bytes of records that a partition reads from the log in one go. Larger: fewer reads; smaller: memory is shared more evenly among partitions."),
    k("actors.window", Count(1), "4000", "Most records that a partition holds, queued or in flight, besides `node.memory`. A larger window finds work for more keys when a few keys hold most records; once 512 keys are ready to start (more where `concurrency` is larger), reading waits for them."),
    k("actors.ranges", Count(1), "100000", "Finished ranges kept above a position. At the bound reading ahead stops until the oldest unfinished record moves on."),
    k("actors.mailbox", Count(1), "1024", "Mailbox capacity of partitions, limiters and the ledger. Full means the sender keeps its message and waits."),
    k("actors.permits", Count(1), "256", "Start slots that a limiter grants to one partition in one turn. More: fewer messages between actors; fewer: fairer turns among partitions at a low limit."),
    k("actors.restart.first", Duration, "\"100ms\"", "Wait before a failed actor is built again; doubles from there."),
    k("actors.restart.longest", Duration, "\"30s\"", "Longest such wait."),
    k("actors.restart.escalate_after", Count(1), "10", "Failures of one actor within `within` after which its parent is restarted; at the top the node ends."),
    k("actors.restart.within", Duration, "\"5m\"", "See `actors.restart.escalate_after`."),
    k("logging.level", Text, "\"info\"", "Which log lines: `info`, or by module as `sluicegate=debug,warn`."),
    k("logging.format", Choice(&["auto", "pretty", "json"]), "\"auto\"", "`auto`: pretty on a terminal, JSON otherwise."),
    k("logging.sample", Count(0), "0", "About one message in so many is sampled: a span, and a line for each of its attempts (`docs/logs.md`). 0 is none and costs nothing."),
    k("secrets.NAME.env", Text, "", "The secret is the value of this environment variable. Used in templates as `{{ secret('NAME') }}`."),
    k("secrets.NAME.file", Path, "", "The secret is this file's content; a line end at its end is cut off. Give either `env` or `file`; a literal is refused."),
    k("limits.NAME.rates", Rates, "", "Rates that all hold at once, over any sliding window: `500/s`, `20000/min`, `10/250ms`. With a zone it is a calendar quota: `1000000/day@Europe/London` (hour, day, week, month)."),
    k("limits.NAME.by", Forms("`json:/POINTER`"), "", "One such budget for each value of this field of the record."),
    k("limits.NAME.burst", Count(1), "", "At most so many starts back to back before starts are spaced evenly. Unset: a window's whole count may start at once."),
    k("limits.NAME.margin", Duration, "\"10ms\"", "By how much the way to the partner may differ from one request to the next. Windows are longer by so much (at most a tenth of the window), calendar quotas begin so much later and end so much earlier: then the limit holds for what the partner counts on its clock. 10 ms of a second cost 1 % of the limit."),
    k("partners.NAME.sink", Choice(&["http"]), "\"http\"", "What takes the messages."),
    k("partners.NAME.url", Template, "[required]", "Address of each request. `{{ value }}` alone: the record is the URL, and the method is GET."),
    k("partners.NAME.method", Text, "\"POST\"", "Request method; GET where the URL is the record's value."),
    k("partners.NAME.headers", Templates, "", "Headers, by name, each a template: `{ authorization = \"Bearer {{ secret('acme') }}\" }`."),
    k("partners.NAME.body", Template, "", "Body of the request. Unset: the record's value as it stands; nothing for GET and HEAD."),
    k("partners.NAME.concurrency", Count(1), "64", "Requests in flight to this partner. Needed: rate x latency (1,000/s at 100 ms need 100)."),
    k("partners.NAME.limits", Forms("name, list of names or rates, or table"), "", "Budgets that every start draws from: the name of a `[limits.NAME]` that several partners may share, or rates of its own, or a table with the keys of `[limits.NAME]`."),
    k("partners.NAME.timeout.connect", Duration, "\"2s\"", "Time for a connection to stand. A connection that never stood is no doubt: it is tried again."),
    k("partners.NAME.timeout.request", Duration, "\"10s\"", "Time from the first byte written to the last byte of the answer. Past it the attempt is in doubt."),
    k("partners.NAME.timeout.connection", Duration, "\"5m\"", "Longest life of a connection, however busy: a new one resolves the partner's name anew."),
    k("partners.NAME.retry.first", Duration, "\"200ms\"", "First backoff; doubles from there, with full jitter."),
    k("partners.NAME.retry.longest", Duration, "\"5m\"", "Longest backoff."),
    k("partners.NAME.retry.give_up_after", Duration, "\"1d\"", "Age, counted from the first try, after which a message becomes a dead letter."),
    k("partners.NAME.retry.attempts", Count(1), "", "Attempts after which a message becomes a dead letter. Unset: no bound but the age."),
    k("partners.NAME.retry.longest_retry_after", Duration, "\"1h\"", "Bound on what the partner's own Retry-After may ask for."),
    k("partners.NAME.doubt", Forms("park, resend, verify, or a table by cause"), "", "What to do with an attempt whose outcome is unknown. `park`: hold it for an operator (at most once). `resend`: send again with the same Idempotency-Key, within `idempotency_window`. `verify`: ask the partner's look-up URL."),
    k("partners.NAME.doubt.crash", DOUBT, "\"park\"", "Policy where the process ended between intent and outcome."),
    k("partners.NAME.doubt.timeout", DOUBT, "\"park\"", "Policy after a timeout or reset once the request was written, a 408, or an answer that cannot be read."),
    k("partners.NAME.doubt.gateway", DOUBT, "\"park\"", "Policy for answers that leave open whether the partner took it: 303, all 5xx but 501, 503 and 505, and a 503 that a proxy gives for a broken upstream connection."),
    k("partners.NAME.on_doubt", Choice(&["continue", "hold"]), "\"continue\"", "Whether the key of a message in doubt goes on or waits until the doubt is settled (strict order)."),
    k("partners.NAME.idempotency_window", Duration, "\"1d\"", "How long the partner remembers an Idempotency-Key: the bound of `resend`. Ask the partner; too long a value risks a second effect."),
    k("partners.NAME.idempotency_key", Flag, "true", "Whether `Idempotency-Key` is sent."),
    k("partners.NAME.traceparent", Flag, "true", "Whether `traceparent` is sent."),
    k("partners.NAME.verify.url", Template, "[required]", "Look-up for `verify`: asks whether the partner has the message."),
    k("partners.NAME.verify.method", Text, "\"GET\"", "Its method."),
    k("partners.NAME.verify.headers", Templates, "", "Its headers."),
    k("partners.NAME.verify.delivered", Expression, "[required]", "Holds for an answer that says: the partner has it."),
    k("partners.NAME.verify.never_seen", Expression, "[required]", "Holds for an answer that says: the partner has never seen it. Believed the second time, `settle` later; then the message is sent again. Any other answer parks."),
    k("partners.NAME.verify.settle", Duration, "\"1s\"", "Wait before asking, counted from when the request cannot be on its way any more: from its timeout, after a crash from `timeout.request` after the start."),
    k("partners.NAME.verify.timeout", Duration, "[timeout.request]", "Time for one look-up."),
    k("partners.NAME.verdict[].when", Expression, "[required]", "Rule over `status`, `header`, `body`; first match wins, then the defaults. For partners that answer 200 with an error inside: `status == 200 and (not body.code exists or body.code != 0)`. Where the body cannot be read, an answer that a rule may be about is never delivered."),
    k("partners.NAME.verdict[].is", Choice(&["delivered", "later", "refused", "unknown", "pause"]), "[required]", "What a match means. `pause`: pause the partner and try the message later (credentials)."),
    k("partners.NAME.verdict[].reason", Text, "", "Path of the reason in the answer (`body.message`), or a text in quotes."),
    k("partners.NAME.verdict[].after", Duration, "", "With `later`: wait at least so long."),
    k("partners.NAME.verdict[].scope", Choice(&["message", "key", "partner"]), "", "Whom the answer's waits and rate hints concern. `message`: only the message waits, for `Retry-After` or `after`; the partner goes on. `key`: the same, and where the message ends meanwhile the next one of its key waits too. `partner`: the partner as a whole, also for `after`. Unset: the partner's own headers (`Retry-After` with 429 and 503, RateLimit with nothing left) hold the partner, `after` holds the message. `pause` and `unknown` always concern the partner."),
    k("partners.NAME.http2", Flag, "false", "HTTP/2, where the partner agrees to it (over `http://` at once): requests share connections."),
    k("partners.NAME.proxy", Text, "", "URL of a proxy: `http`, `https`, `socks5` (names are resolved here), `socks5h` (by the proxy). May hold user and password."),
    k("partners.NAME.redirects", Count(0), "0", "Redirects that one message may follow: 307 and 308, and any for GET and HEAD, to the same scheme, host and port. Each is an attempt of its own, with a start slot. What is not followed is an answer as any other: 301, 302, 307 and 308 are refused, 303 is in doubt."),
    k("partners.NAME.redirect_to", Texts, "", "Other origins that redirects may lead to, as `https://eu.api.example`. The body goes there too; `headers` and the user of the URL do not."),
    k("partners.NAME.url_reach", Choice(&["usual", "public", "any"]), "\"usual\"", "How far URLs reach whose host comes from a record. `usual`: anywhere but link-local and reserved addresses, at which clouds give out credentials. `public`: no loopback and no private network either. `any`: anywhere. No request goes to a port of the node itself, whatever is set."),
    k("partners.NAME.title_case_headers", Flag, "false", "Header names `Like-This` and not `like-this`, for servers that know only that spelling (HTTP/1.1)."),
    k("partners.NAME.rate_limit_headers", Flag, "true", "Whether `RateLimit`, `RateLimit-Remaining` and their relatives hold back starts. `Retry-After` always does."),
    k("partners.NAME.answer_limit", Size, "\"64KiB\"", "Bytes of an answer read at most; what lies behind is not looked at."),
    k("partners.NAME.ca", Path, "", "Extra CA certificates (PEM)."),
    k("partners.NAME.breaker.failures", Count(0), "20", "Failures in a row that open the circuit breaker; 0 is no breaker."),
    k("partners.NAME.breaker.open", Duration, "\"1s\"", "How long it stays open first; doubles."),
    k("partners.NAME.breaker.longest", Duration, "\"1m\"", "Longest time open."),
    k("partners.NAME.breaker.probes", Count(1), "1", "Probes at once when half open."),
    k("partners.NAME.flood.dead_in_a_row", Count(0), "1000", "Dead messages in a row of one topic that stop its route; 0 is never."),
    k("partners.NAME.flood.doubts_in_a_row", Count(1), "[concurrency, at least 3]", "Doubts in a row that open the breaker, so that a hanging partner does not park batch after batch."),
    k("partners.NAME.flood.probe", Duration, "\"1m\"", "Once twice as many doubts as the `concurrency` (at least 4) have come in a row, the next probe waits so long, and each further one twice as long as the one before, up to ten times this. Each may park a message."),
    k("partners.NAME.retention", Duration, "[dedup.retention]", "How long delivered IDs are remembered for this partner."),
    k("partners.NAME.mask", Texts, "", "Names of query parameters and JSON fields to mask, besides the built-in ones."),
    k("topics.NAME.partner", Forms("name or `json:/POINTER`"), "[required, or deliver]", "Short for `deliver` with one partner. `json:/POINTER`: the record names its partner; an unknown name makes it a dead letter."),
    k("topics.NAME.deliver[].partner", Forms("name or `json:/POINTER`"), "[required]", "A partner that the topic feeds, with progress of its own. An element may be just the name."),
    k("topics.NAME.deliver[].when", Expression, "", "Only records for which this holds; others are finished at once."),
    k("topics.NAME.match", Forms("regular expression"), "", "The section is for all topics whose whole name matches. A section of exactly the topic's name goes before, then the first match in alphabetical order."),
    k("topics.NAME.partitions", Count(1), "4", "Partitions the topic is made with. Cannot shrink; more later changes which partition a key falls to."),
    k("topics.NAME.id", Forms("source, or list of sources"), "\"position\"", "What makes a record the same message again: `header:NAME`, `json:/POINTER`, `key`, `hash` (of the value), `query:NAME` (of the URL that the value is), `position`; a list is joined."),
    k("topics.NAME.id_missing", Choice(&["dead", "position"]), "\"dead\"", "A record without ID: dead letter, or its position is its ID. An imported line without one has an ID of its own: the first 32 hex digits of the file's hash, a colon, and the line's number."),
    k("topics.NAME.key", Forms("`record` or `json:/POINTER`"), "\"record\"", "The unit of order: the record's key, or a field of its value."),
    k("topics.NAME.key_missing", Choice(&["unordered", "together", "dead"]), "\"unordered\"", "A record without key: a key of its own, one key for all such, or dead letter."),
    k("topics.NAME.retention", Duration, "[log.retention]", "How long its records are kept."),
    k("topics.NAME.retention_bytes", Size, "[log.retention_bytes]", "Bytes it may keep."),
    k("topics.NAME.busy_keys", Count(1), "[actors.busy_keys]", "Subpartition actors at once in one of its partitions."),
    k("dedup.retention", Duration, "\"8d\"", "How long finished IDs are remembered: a new record with an older one is sent. A weekly rerun falls on day 7."),
    k("dedup.bucket", Duration, "\"1d\"", "Span of one bucket: the step in which memory and disk come back."),
    k("dedup.cache", Size, "\"16MiB\"", "Cache of the newest bucket. As large as the bucket on disk (some 40 B an ID) it makes look-ups of duplicates five times as fast."),
];

/// Sections kept for later versions.
pub const RESERVED: [&str; 6] = ["ingest", "import", "jobs", "reports", "alerts", "telemetry"];

/// Whether a top-level section holds named sections (`[partners.acme]`).
pub fn is_named(section: &str) -> bool {
    ["secrets", "limits", "partners", "topics"].contains(&section)
}

/// The table's key for a path of real names.
pub fn find(path: &[String]) -> Option<&'static Key> {
    let pattern = pattern(path);
    KEYS.iter().find(|key| key.path == pattern)
}

fn pattern(path: &[String]) -> String {
    let parts = path.iter().enumerate().map(|(i, part)| match i {
        1 if is_named(&path[0]) => "NAME",
        _ => part.as_str(),
    });
    parts.collect::<Vec<_>>().join(".")
}

/// Whether names below this path are free (header names).
pub fn is_free_table(path: &[String]) -> bool {
    find(path).is_some_and(|key| key.kind == Templates)
}

/// Whether a value at this path is text whatever it looks like: a token of digits stays text.
pub fn takes_plain_text(path: &[String]) -> bool {
    let plain = |kind| {
        matches!(
            kind,
            Text | Template | Expression | Duration | Size | Choice(_) | Address | Path
        )
    };
    find(path).is_some_and(|key| plain(key.kind))
        || path.split_last().is_some_and(|(_, table)| is_free_table(table))
}

const HEAD: &str = "\
# Configuration

Printed from the table in `src/config/reference.rs`; `SLUICEGATE_WRITE_DOCS=1 cargo test --lib config::tests::manual`
writes it again.

Sluicegate reads `./actors.toml`, or the files that `--config` names: several overlay each other key by key, the later
one wins. Lists are replaced, tables are merged. `sluicegate check` names every mistake with file and line, and
`sluicegate check --effective` shows every value and where it comes from, secrets masked. Only a partner's `url` and the
link between topic and partner have no default.

## Environment

`SLUICEGATE__SECTION__KEY` or `SLUICEGATE__SECTION__NAME__KEY` goes over all files; parts are separated by two underscores:

```sh
SLUICEGATE__NODE__MEMORY=1GiB sluicegate run
SLUICEGATE__PARTNERS__ACME_EU__TIMEOUT__REQUEST=5s sluicegate run           # acme-eu, acme.eu or Acme_EU
env 'SLUICEGATE__PARTNERS__acme-eu__CONCURRENCY=5' sluicegate run           # the exact name
env 'SLUICEGATE__PARTNERS__acme-eu__HEADERS__X-Api-Version=3' sluicegate run
```

Section and key may be in any case. A name is meant exactly as written if such a section exists; else the one that is
alike but for case and punctuation (several such are an error); else it begins a new section. Header names are kept as
written. Text is taken as it stands; counts, lists and tables as TOML writes them: `SLUICEGATE__PARTNERS__acme__LIMITS='[\"5/s\"]'`.

`SLUICEGATE_ADMIN` and `SLUICEGATE_TOKEN` tell commands which node to talk to, and with what token.

## Units

| kind | forms |
|---|---|
| duration | `200ms`, `2s`, `5m`, `24h`, `8d`, `1h30m`; a bare number is refused |
| size | `512MiB`, `64KiB` (1,024s), `10KB` (1,000s), `100B` |
| rate | `500/s`, `20000/min`, `10/250ms`, `7/day`: any sliding window of that length; `1000000/day@Europe/London`: from midnight to midnight of a zone |
| template | `{{ }}` over `value`, `key`, `headers`, `topic`, `partition`, `offset`, `time`, `id`, `message_id`, `attempt`, `partner`, `source`, `idempotency_key` and `secret('name')` |

Names of sections are letters, digits, `.`, `_` and `-`, at most 200 bytes.
";

const WHICH: &str = "
## Which knob matters when

Per node. What is not named can stay at its default.

| actor | 10 messages/s | 1,000 messages/s | 100,000 messages/s (several nodes or fast partners) |
|---|---|---|---|
| all: `actors.threads` | 1 is enough and saves memory | 0 (one a core) | 0; cores are the bound |
| partition: `topics.NAME.partitions` | 1 keeps everything in one order of reading | 4 | 2 x cores of the cluster or more |
| partition: `actors.window`, `actors.read_chunk` | default | default; raise `window` where few keys hold most records | `read_chunk` 1 MiB; `window` x record size x partitions must fit `node.memory` |
| partition: `actors.ranges` | default | default | raise where one stuck key lets millions of others finish |
| subpartition: `actors.busy_keys`, `topics.NAME.busy_keys` | default | ≥ rate x latency ÷ partitions: 1,000/s x 0.1 s ÷ 4 = 25; default is ample | 100,000/s x 0.1 s ÷ 16 = 625; raise to twice that |
| limiter: `partners.NAME.limits` | what the partner allows: the first knob at any rate | the same | the same |
| limiter: `partners.NAME.concurrency` | default | rate x latency: 1,000/s x 0.1 s = 100 | rate x latency, bounded by `actors.requests` |
| limiter: `actors.permits` | 1 to 16: fair turns at a low limit | default | 1,024: fewer messages between actors |
| ledger: `log.commit_gap` | default: a commit follows at once when idle | default | 2-5 ms: larger commits, each delivery that much later |
| ledger: `ledger.checkpoint_entries` | default | default | 5,000,000 where restarts may take a second longer |
| node: `actors.requests` | default | default | sum of rate x latency over partners; needs as many file descriptors |
| supervisors: `actors.restart.*`, `actors.mailbox` | default | default | `mailbox` 4,096 where `/metrics` shows partitions waiting on the ledger |
";

/// The manual page as Markdown.
pub fn markdown() -> String {
    let mut page = String::from(HEAD);
    let mut section = "";
    for key in KEYS {
        let head = key.path.split('.').next().unwrap_or_default();
        if head != section {
            section = head;
            let title = if is_named(head) {
                format!("[{head}.NAME]")
            } else {
                format!("[{head}]")
            };
            page.push_str(&format!(
                "\n## `{title}`\n\n| key | takes | default | effect |\n|---|---|---|---|\n"
            ));
        }
        let short = key.path.split_once('.').map_or(key.path, |(_, rest)| rest);
        let short = short.strip_prefix("NAME.").unwrap_or(short);
        let default = match (key.default, key.default.strip_prefix('[')) {
            ("", _) => "unset".to_owned(),
            (_, Some(depends)) => depends.trim_end_matches(']').to_owned(),
            (value, None) => format!("`{value}`"),
        };
        let effect = key.effect.replace('|', "\\|");
        page.push_str(&format!(
            "| `{short}` | {} | {default} | {effect} |\n",
            key.kind.describe()
        ));
    }
    page.push_str(WHICH);
    let reserved = RESERVED.map(|name| format!("`{name}`")).join(", ");
    page.push_str(&format!(
        "\nSection names kept for later versions: {reserved}; and `log.kafka`.\n"
    ));
    page
}
