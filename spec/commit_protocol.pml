/* The commit protocol of one partition. docs/specification.md explains it; `make spec` checks it.
 *
 * An action is an inline of the form `d_step { guard -> changes }`. Messages are 0 to STOP - 1. A batch [start, stop)
 * is named by its stop. Remaining stages: 2 blobs and rows, 1 rows, 0 none. `cost` consumes a fault.
 */
#ifndef REPLAYED
#define STOP 2
#define READERS 2
#define FAULTS 2
#define SLOTS 2
#define number byte
#define works(r) (reader[r].holds && owner == r)     /* an expelled reader does nothing until it detects that */
#define is_next(r) (r == 0 || reader[0].holds)       /* readers are interchangeable */
#endif
#define NOBODY READERS
#define R reader[r]
#define B reader[r].batch[stop]
#define C chord[stop]
#define each(i) for (i : 1 .. STOP)
#define cost faults > 0 -> faults--
#define marked ((C.stage == 2 -> marked_blobs[stop] : marked_rows[stop]) == C.start + 1)

mtype = { FREE, SENT, STORED };
typedef Commit { mtype is = FREE; bool whole; number offset, taken; bool ends[STOP + 1] };
typedef Chord { byte stage, by; number start };                  /* outlives its reader; stage 0: no tasks */
typedef Batch { bool is_cut, recorded, out, parked; byte left; number start };
typedef Reader {
  bool holds, draining, waits, due;   /* draining: revoked; waits: for a response to a commit; due: must commit */
  number taken, safe, known, busy;    /* end of the last cut; committable; acknowledged; busy batches */
  number planned; bool plan[STOP + 1];          /* the former owner's recorded ends; planned: the next end, or 0 */
  Batch batch[STOP + 1];
  byte now; Commit commit[SLOTS]      /* `now`: the last commit sent; the others have timed out */
};
Reader reader[READERS];
byte owner = NOBODY; number committed; bool record[STOP + 1];                 /* stored by the broker */
Chord chord[STOP + 1]; number marked_blobs[STOP + 1], marked_rows[STOP + 1];  /* in Redis; a mark is 1 + start */
bool blob[STOP], durable[STOP]; number cut_at[STOP];                          /* contents of the sinks; first cut */
bool excused; int faults = FAULTS;                                            /* excused: cuts may differ */
hidden short k, l, m;

inline clear(r, n) {
  each(m) { R.commit[n].ends[m] = false }
  R.commit[n].is = FREE; R.commit[n].whole = false; R.commit[n].offset = 0; R.commit[n].taken = 0 }
inline forget(r) {
  for (k : 0 .. 1) { if :: R.commit[k].is != SENT -> clear(r, k) :: else fi }
  each(k) { R.plan[k] = false; R.batch[k].is_cut = false; R.batch[k].recorded = false; R.batch[k].out = false;
    R.batch[k].parked = false; R.batch[k].left = 0; R.batch[k].start = 0;
    chord[k].by = (chord[k].by == r -> NOBODY : chord[k].by) }
  R.holds = false; R.draining = false; R.waits = false; R.due = false; R.taken = 0; R.safe = 0; R.known = 0;
  R.busy = 0; R.planned = 0; owner = (owner == r -> NOBODY : owner);
  R.now = (R.commit[0].is == FREE && R.commit[1].is == FREE -> 0 : R.now) }
inline excuse() { for (k : 0 .. STOP - 1) { cut_at[k] = 0 } excused = true }
inline is_durable(from, to) { for (k : from .. to - 1) { durable[k] = true; blob[k] = true } skip }
inline look_ahead(r) {                /* finds the next recorded end */
  m = 0; for (k : R.taken + 1 .. STOP) { if :: R.plan[k] -> m = k; break :: else fi } R.planned = m }
inline advance(r) {                   /* the longest run of settled batches from the front */
  for (k : R.safe + 1 .. R.taken) {
    if :: R.batch[k].is_cut && R.batch[k].left -> break
       :: R.batch[k].is_cut && !R.batch[k].left -> R.safe = k
       :: else fi }
  R.safe = (k > R.taken -> R.taken : R.safe); R.due = true }
inline take(r, stop, stages) {
  B.is_cut = true; B.left = stages; B.start = R.taken; B.recorded = R.plan[stop];
  R.taken = stop; look_ahead(r);
  if :: stages == 1 -> for (k : B.start .. stop - 1) { blob[k] = true } :: else fi;
  if :: stages -> R.busy++; R.due = true :: else -> is_durable(B.start, stop); advance(r) fi }

/* Hand over */
inline assign(r, at) {                /* reads offset and record; earlier commits are fenced from here on */
  d_step { owner == NOBODY && !R.holds && is_next(r) && at == committed ->
    for (k : 0 .. READERS - 1) {
      for (l : 0 .. SLOTS - 1) { if :: reader[k].commit[l].is == SENT -> clear(k, l) :: else fi } }
    owner = r; R.holds = true; R.taken = committed; R.safe = committed; R.known = committed; R.due = true;
    each(k) { R.plan[k] = record[k] } look_ahead(r) } }
inline revoke(r)  { d_step { R.holds && owner == r && !R.draining && cost; R.draining = true } }
inline release(r) { d_step { R.draining && !R.waits && !R.busy && R.safe == R.known -> forget(r) } }
inline cut_off(r) { d_step { R.draining && cost; forget(r) } }            /* the drain deadline passed */
inline crash(r)   { d_step { R.holds && cost; forget(r) } }
inline expel(r)   { d_step { R.holds && owner == r && cost; owner = NOBODY } }           /* not detected yet */
inline lose(r)    { d_step { R.holds && owner != r -> forget(r) } }

/* Cut */
inline cut(r, stop, stages) {         /* a recorded range comes first, unchanged */
  d_step { works(r) && !R.draining && stop > R.taken && (!R.planned || stop == R.planned) -> take(r, stop, stages) } }
inline cut_short(r, stop, stages) {   /* only a part of a recorded range can be staged */
  d_step { works(r) && !R.draining && stop > R.taken && stop < R.planned && cost; excuse(); take(r, stop, stages) } }
inline give_plan_up(r) {              /* the log ended before the recorded end for too long */
  d_step { works(r) && R.planned && cost; excuse(); each(k) { R.plan[k] = false } R.planned = 0 } }
inline pass(r, to) {                  /* no message lies in [taken, to) */
  d_step { works(r) && !R.draining && to > R.taken -> is_durable(R.taken, to);
    R.safe = (R.safe == R.taken -> to : R.safe); R.taken = to; R.due = true; look_ahead(r) } }
inline split(r, stop, half, stages, rest) {       /* never fits into Redis: becomes two batches, which are recorded */
  d_step { works(r) && B.left && !R.batch[half].is_cut && B.start < half && half < stop && cost; excuse();
    for (k : B.start .. stop - 1) { blob[k] = (blob[k] || (k < half && stages == 1) || (k >= half && rest == 1)) }
    R.busy = R.busy + 1 + B.parked; R.due = true;
    R.batch[half].is_cut = true; R.batch[half].start = B.start; R.batch[half].left = stages;
    B.start = half; B.left = rest; B.recorded = false; B.out = false; B.parked = false;
    C.stage = 0 } }

/* Record and commit: one message to the broker */
inline send(r, n, at, last) {         /* the offset, and the ends above it up to `last`, if more do not fit */
  d_step { works(r) && R.due && !R.waits && R.commit[n].is == FREE && at <= R.safe ->
    each(k) { R.commit[n].ends[k] = (k > at && k <= last && (R.batch[k].is_cut || (R.plan[k] && k > R.taken))) }
    R.commit[n].is = (owner == r -> SENT : FREE); R.commit[n].whole = (last == STOP); R.commit[n].offset = at;
    R.commit[n].taken = R.taken; R.now = n; R.waits = true; R.due = false } }
inline store(r, n) {                  /* THE GUARANTEE: every message before a committed offset is durable */
  d_step { R.commit[n].is == SENT ->
    assert(R.commit[n].offset >= committed || n != R.now);
    committed = R.commit[n].offset; each(k) { record[k] = R.commit[n].ends[k] }
    for (k : 0 .. committed - 1) { assert(durable[k]); cut_at[k] = 0; marked_blobs[k+1] = 0; marked_rows[k+1] = 0 }
    if :: n != R.now || !R.commit[n].whole -> excuse() :: else fi;
    if :: R.holds -> R.commit[n].is = STORED :: else -> clear(r, n) fi } }
inline strip(r, n) {                  /* the commit will be stored without its record */
  d_step { R.commit[n].is == SENT && R.commit[n].whole && cost;
    each(k) { R.commit[n].ends[k] = false } R.commit[n].whole = false } }
inline acknowledge(r, n) {            /* batches whose ends were in the commit are recorded */
  d_step { R.commit[n].is == STORED ->
    if :: R.waits && n == R.now -> R.known = R.commit[n].offset; R.waits = false;
          each(k) { R.batch[k].recorded = (R.batch[k].recorded || (R.batch[k].is_cut && k <= R.commit[n].taken)) }
       :: else -> R.due = true                                    /* a late commit: resend the newer one */
    fi; clear(r, n) } }
inline again(r, n)  { clear(r, n); R.waits = false; R.due = true }
inline refuse(r, n) { d_step { R.waits && n == R.now && R.commit[n].is == SENT && cost; again(r, n) } }
inline vanish(r, n) { d_step { R.waits && n == R.now && R.commit[n].is == STORED && cost; again(r, n) } }
inline fenced(r)   { d_step { R.waits && owner != r -> R.waits = false } }
inline overtake(r) {                  /* timed out too early: may be stored later, over the next commit */
  d_step { R.waits && R.commit[R.now].is != FREE && cost; R.waits = false; R.due = true } }

/* Dispatch, flush, mark, settle */
inline dispatch(r, stop) {            /* only recorded batches, with the same cut as any former owner */
  d_step { works(r) && B.left && B.recorded && !B.out ->
    for (k : B.start .. stop - 1) {
      assert(excused || !cut_at[k] || cut_at[k] == stop); cut_at[k] = (excused -> 0 : stop) }
    B.out = true; R.busy = R.busy + B.parked; B.parked = false; C.stage = B.left; C.start = B.start; C.by = r } }
inline go_unrecorded(r, stop) {       /* the broker does not respond, and the batch has waited too long */
  d_step { works(r) && B.left && !B.recorded && cost; B.recorded = true; excuse() } }
inline write(r, stop) {               /* by a worker; blobs precede rows */
  d_step { C.stage && !marked ->
    for (k : C.start .. stop - 1) {
      if :: C.stage == 2 -> blob[k] = true :: else -> assert(blob[k]); durable[k] = true fi }
    skip } }
inline mark(r, stop) {                /* only after an acknowledged write */
  d_step { if :: C.stage == 2 -> marked_blobs[stop] = C.start + 1 :: else -> marked_rows[stop] = C.start + 1 fi } }
inline settle(r, stop, stage_) {      /* the chord's body found every mark; the last stage settles the batch */
  d_step { B.out && C.stage == stage_ && C.by == r && B.left == stage_ && marked ->
    C.stage = 0; B.out = false; R.busy = R.busy + B.parked; B.parked = false; B.left--;
    if :: !B.left -> R.busy--; advance(r) :: else fi } }
inline abandon(r, stop) {             /* by an operator; its messages are durable dead letters */
  d_step { B.left && cost; R.busy = R.busy - 1 + B.parked; B.left = 0; B.parked = false; B.out = false;
    is_durable(B.start, stop); advance(r) } }
inline park(r, stop) {                /* its chord failed; the next dispatch retries it */
  d_step { B.out && cost; B.out = false; B.parked = true; R.busy--; C.stage = 0 } }
inline lose_chord(r, stop) { d_step { C.stage && cost; C.stage = 0 } }      /* a lost task, body or completion */
inline expire(r, stop)     { d_step { B.out && (!C.stage || C.by != r) -> B.out = false } }    /* the deadline passed */
inline wipe() {                       /* Redis restarts empty: marks, queues and completions are lost */
  d_step { faults > 0 -> each(k) { marked_blobs[k] = 0; marked_rows[k] = 0;
    chord[k].stage = 0; chord[k].start = 0 } faults-- } }

#ifndef REPLAYED                      /* Every order of these actions */
#define OF_BATCH(r, i, stages) :: cut(r, i, stages) :: cut_short(r, i, stages) :: dispatch(r, i) :: expire(r, i) \
  :: atomic { write(r, i); if :: mark(r, i) :: cost fi } :: settle(r, i, 2) :: settle(r, i, 1) :: park(r, i) \
  :: lose_chord(r, i) :: go_unrecorded(r, i) :: abandon(r, i)
#define OF_COMMIT(r, n) :: send(r, n, reader[r].safe, STOP) :: store(r, n) :: strip(r, n) :: acknowledge(r, n) \
  :: refuse(r, n) :: vanish(r, n)
#define OF_READER(r) OF_BATCH(r, 1, 1) OF_BATCH(r, 2, 2) OF_COMMIT(r, 0) OF_COMMIT(r, 1) \
  :: assign(r, committed) :: revoke(r) :: release(r) :: cut_off(r) :: crash(r) :: expel(r) :: lose(r) \
 :: fenced(r) :: overtake(r) :: give_plan_up(r) :: pass(r, STOP) :: split(r, 2, 1, 2, 2)
active proctype world() {
  do OF_READER(0) OF_READER(1) :: wipe()
  :: timeout -> assert(committed == STOP); break        /* in the end, everything is committed */
  od
}
#endif
