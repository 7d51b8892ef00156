/* Checks the history of one partition in a run against commit_protocol.pml.
 *
 * `python -m tools.spec` writes the history as numbers, one action per line, to the file in the variable HISTORY.
 * The broker may store a commit at any time between two actions, because readers cannot observe that; the search
 * tries every possibility. The last line of the output has the number of actions that were reached.
 */
#define FAULTS 32000
#define number short
#define works(r) (reader[r].holds)
#define is_next(r) true
#include "commit_protocol.pml"

c_decl {
\#include <stdio.h>
\#include <stdlib.h>
\#define ACTIONS_MAX 200000
static short history[ACTIONS_MAX][5];
static int actions, furthest;
static void read_history(void) {
  FILE *file = fopen(getenv("HISTORY"), "r");
  while (actions < ACTIONS_MAX && fscanf(file, "%hd %hd %hd %hd %hd", &history[actions][0], &history[actions][1],
         &history[actions][2], &history[actions][3], &history[actions][4]) == 5) actions++;
  fclose(file);
}
static void got_to(int at) { if (at > furthest) { furthest = at; printf("got to %d\n", at); } }
}

int at; short what, r, x, y, z;

#define HOLDS(condition) d_step { (condition) -> skip }

inline begin(offset_) {      /* stored by the broker before the history begins */
  d_step { committed = offset_; for (k : 0 .. offset_ - 1) { durable[k] = true } skip } }
inline again_if_lost(r_, stop, stage_) {    /* a late completion counts, even after its deadline or another dispatch */
  if :: chord[stop].stage == stage_ && chord[stop].by == r_ && reader[r_].batch[stop].out -> skip
     :: else -> d_step { reader[r_].batch[stop].out = false }; dispatch(r_, stop) fi }
inline flush(r_, stop) { if :: write(r_, stop); mark(r_, stop) :: else fi }

active proctype replay() {
  c_code { read_history(); };
  do
  :: c_expr { now.at < actions } ->
     d_step { c_code { got_to(now.at); now.what = history[now.at][0]; now.r = history[now.at][1];
       now.x = history[now.at][2]; now.y = history[now.at][3]; now.z = history[now.at][4]; } }
     if
     :: what == 0 -> begin(x)
     :: what == 1 -> d_step { record[x] = true }
     :: what == 2 -> assign(r, x)
     :: what == 3 -> revoke(r)
     :: what == 4 -> release(r)
     :: what == 5 -> cut_off(r)
     :: what == 6 -> crash(r)
     :: what == 7 -> expel(r)
     :: what == 8 -> lose(r)
     :: what == 9 -> cut(r, x, y)
     :: what == 10 -> cut_short(r, x, y)
     :: what == 11 -> give_plan_up(r)
     :: what == 12 -> pass(r, x)
     :: what == 13 -> split(r, x, y, z / 4, z % 4)
     :: what == 14 -> d_step { reader[r].due = true }; send(r, x, y, z)
     :: what == 15 -> strip(r, x)
     :: what == 16 -> acknowledge(r, x)
     :: what == 17 -> refuse(r, x)
     :: what == 18 -> overtake(r)
     :: what == 19 -> fenced(r)
     :: what == 20 -> dispatch(r, x)
     :: what == 21 -> if :: go_unrecorded(r, x) :: else fi               /* unless it is recorded */
     :: what == 22 -> again_if_lost(r, x, y); flush(r, x); settle(r, x, y)
     :: what == 23 -> abandon(r, x)
     :: what == 24 -> park(r, x)
     :: what == 25 -> d_step { reader[r].batch[x].out = false }                 /* expire */
     :: what == 26 -> HOLDS(reader[r].batch[x].is_cut && !reader[r].batch[x].left)      /* settled */
     :: what == 27 -> HOLDS(reader[r].commit[x].ends[y])                       /* the commit has this end */
     :: what == 28 -> d_step { m = 0; for (k : 1 .. STOP) { m = m + reader[r].commit[x].ends[k] } z = m };
                      HOLDS(z == y)                                            /* and this number of ends */
     :: what == 29 -> HOLDS(reader[r].plan[x])                                 /* the new owner reads this end */
     :: what == 30 -> d_step { m = 0; for (k : 1 .. STOP) { m = m + reader[r].plan[k] } z = m }; HOLDS(z == x)
     fi;
     d_step { at++; what = 0; r = 0; x = 0; y = 0; z = 0 }
  :: c_expr { now.at == actions } -> c_code { printf("accepted\n"); }; assert(false)
  od
}

#define STORES(r) :: store(r, 0) :: store(r, 1) :: store(r, 2) :: store(r, 3)
active proctype broker() {
end: do STORES(0) STORES(1) STORES(2) STORES(3) STORES(4) STORES(5) od
}
