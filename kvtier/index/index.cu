// The page index on a GPU. interface.py says what each step means; cuda.py calls these in order.
//
// Kernels with a row per thread take `count` rows and any grid that covers them. None depends on the
// order in which threads run: what a batch leaves behind is the same each time, and the same as the
// other engines leave.
#include "slots.cuh"

__device__ inline i64 thread_number() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ inline int lane_number() { return threadIdx.x & 31; }
__device__ inline u32 lanes_before() { return (1u << lane_number()) - 1; }

// -- lookup, step 1: probe ------------------------------------------------------------------------

// Look pages up and stamp the slots found. `missed` gets a bit for each row that did not hit, 32 rows
// to a word, and `missed_counts` how many those are in each word.
extern "C" __global__ void probe(SlotTable table, const u64* page_ids, i64 count, u32 stamp,
                                 u8* states, i64* slots, u32* missed, i64* missed_counts) {
  const i64 row = thread_number();
  u8 state = VALID;  // of the rows past the end, which thereby miss nothing
  if (row < count) {
    const u64 page_id = page_ids[row];
    const i64 slot = find_slot(table, page_id, fmix64(page_id ^ table.seed_word));
    state = slot < 0 ? EMPTY : table.states[slot];
    if (slot >= 0) __stcg(&table.stamps[slot], stamp);
    states[row] = state;
    slots[row] = slot;
  }
  const u32 word = __ballot_sync(ALL_LANES, state != VALID);
  if (lane_number() == 0 && row < count) {
    missed[row / 32] = word;
    missed_counts[row / 32] = __popc(word);
  }
}

// The same for a batch that is described in memory, as a graph of kernels needs it: the address of
// its page ids, how many they are, and the stamp. `slots` has -1 where a page did not hit.
extern "C" __global__ void probe_batch(SlotTable table, const u64* batch, i64* slots,
                                       u64* missed_counts) {
  const i64 row = thread_number();
  bool missed = false;
  if (row < (i64)batch[1]) {
    const u64 page_id = ((const u64*)batch[0])[row];
    const i64 slot = find_slot(table, page_id, fmix64(page_id ^ table.seed_word));
    if (slot >= 0) __stcg(&table.stamps[slot], (u32)batch[2]);
    missed = slot < 0 || table.states[slot] != VALID;
    slots[row] = missed ? -1 : slot;
  }
  const u32 word = __ballot_sync(ALL_LANES, missed);
  if (lane_number() == 0) missed_counts[row / 32] = __popc(word);
}

// How many rows before `row` did not hit. `ends` is the running sum of `missed_counts`.
__device__ inline i64 missed_before(const u32* missed, const i64* ends, i64 row) {
  const u32 word = missed[row / 32];
  return ends[row / 32] - __popc(word) + __popc(word & ((1u << row % 32) - 1));
}

// List the rows that hit, ascending, and the slot of each.
extern "C" __global__ void list_hits(i64 count, const u32* missed, const i64* ends,
                                     const i64* slots, i64* hit_rows, i64* hit_slots) {
  const i64 row = thread_number();
  if (row >= count || (missed[row / 32] >> row % 32 & 1)) return;
  const i64 at = row - missed_before(missed, ends, row);
  hit_rows[at] = row;
  hit_slots[at] = slots[row];
}

// List the rows that did not hit, ascending, and their hashes.
extern "C" __global__ void compact(const u64* page_ids, i64 count, u64 seed_word, const u32* missed,
                                   const i64* ends, i64* miss_rows, u64* miss_hashes) {
  const i64 row = thread_number();
  if (row >= count) return;
  if (!(missed[row / 32] >> row % 32 & 1)) return;
  const i64 at = missed_before(missed, ends, row);
  miss_rows[at] = row;
  miss_hashes[at] = fmix64(page_ids[row] ^ seed_word);
}

// -- lookup, step 2: fold ---------------------------------------------------------------------------

// The first position with this hash in `hashes`, ascending, of which position `at` has it.
__device__ inline i64 run_start(const u64* hashes, i64 at) {
  const u64 hashed = hashes[at];
  if (at == 0 || hashes[at - 1] != hashed) return at;
  i64 below = 0, found = at - 1;
  while (below < found) {
    const i64 middle = below + (found - below) / 2;
    if (hashes[middle] == hashed) found = middle;
    else below = middle + 1;
  }
  return found;
}

// Rows of one page follow the first of them. Rows and hashes are sorted by hash, rows of equal hash
// ascending.
extern "C" __global__ void fold(const i64* rows, const u64* hashes, i64 count, i64* leaders) {
  const i64 at = thread_number();
  if (at < count) leaders[rows[at]] = rows[run_start(hashes, at)];
}

// -- lookup, step 3: plan ---------------------------------------------------------------------------

// How early a slot is taken: by state, priority, stamp and way. LAST if it must not be taken.
struct Cost {
  u64 high;
  u32 way;
};
const u64 LAST = ~0ull;

__device__ inline Cost cost_of(const SlotTable& table, i64 slot, int way, u32 oldest_stamp) {
  const u8 state = table.states[slot];
  const u32 stamp = table.stamps[slot];
  if (state == PENDING || stamp >= oldest_stamp) return {LAST, (u32)way};
  // A stamp below the oldest one is below 2**32 - 1, so no cost equals LAST.
  const u64 by_age = (u64)table.priorities[slot] << 32 | stamp;
  return {by_age, (u32)way | (state == EMPTY ? 0 : 32u)};
}

// Reserve a slot for each missing page that is admitted. A warp takes a set's rows: those from a
// position whose set differs from the one before. The pages of a set take its slots in the order of
// their cost, one after the other, for a slot that is taken is not usable any more.
extern "C" __global__ void plan(SlotTable table, const u64* page_ids, const i64* rows,
                                const u64* hashes, i64 count, const bool* admit,
                                const u32* priorities, u32 stamp, u32 oldest_stamp,
                                const u8* states, const i64* leaders, i64* slots, u64* evicted,
                                u64* was_evicted, u64* bypasses) {
  const i64 start = thread_number() / 32;
  if (start >= count) return;
  const i64 set = set_of(hashes[start], table.sets);
  if (start > 0 && set_of(hashes[start - 1], table.sets) == set) return;

  const int lane = lane_number();
  const bool has_slot = lane < WAYS;
  const i64 slot = set * WAYS + lane;
  Cost mine = {LAST, (u32)lane};
  if (has_slot) mine = cost_of(table, slot, lane, oldest_stamp);
  const bool usable = mine.high != LAST;
  // An EMPTY slot goes before all others: those have bit 5 of `way` set.
  int rank = 0;
  for (int other = 0; other < WAYS; other++) {
    const u64 high = __shfl_sync(ALL_LANES, mine.high, other);
    const u32 way = __shfl_sync(ALL_LANES, mine.way, other);
    const bool is_empty = way < 32, am_empty = mine.way < 32;
    const bool before = high != LAST && (is_empty != am_empty ? is_empty
                                         : high != mine.high  ? high < mine.high
                                                              : way < mine.way);
    rank += before;
  }

  int taken = 0;
  u32 bypassed = 0;
  for (i64 at = start + lane;; at += 32) {
    const bool here = at < count && set_of(hashes[at], table.sets) == set;
    const i64 row = here ? rows[at] : 0;
    const bool wants = here && leaders[row] == row && states[row] == EMPTY &&
                       (admit == nullptr || admit[row]);
    const u32 wanting = __ballot_sync(ALL_LANES, wants);
    const int place = taken + __popc(wanting & lanes_before());
    int way = -1;
    for (int other = 0; other < WAYS; other++) {
      const int its_rank = __shfl_sync(ALL_LANES, usable ? rank : -1, other);
      if (its_rank == place) way = other;
    }
    if (wants) {
      const i64 chosen = way < 0 ? -1 : set * WAYS + way;
      slots[row] = chosen;
      if (chosen >= 0) {
        was_evicted[at] = table.states[chosen] == VALID;
        evicted[at] = table.tags[chosen];
        table.tags[chosen] = page_ids[row];
        table.digests[chosen] = (u8)(hashes[at] & 0xff);
        table.states[chosen] = PENDING;
        table.stamps[chosen] = stamp;
        table.priorities[chosen] = priorities == nullptr ? 0 : priorities[row];
      }
    }
    taken += __popc(wanting);
    bypassed += __popc(__ballot_sync(ALL_LANES, wants && way < 0));
    if (__ballot_sync(ALL_LANES, here) != ALL_LANES) break;
  }
  if (lane == 0 && bypassed) atomicAdd(bypasses, (u64)bypassed);
}

// Every row gets its leader's slot.
extern "C" __global__ void spread(const i64* rows, i64 count, const i64* leaders, i64* slots) {
  const i64 at = thread_number();
  if (at >= count) return;
  const i64 row = rows[at];
  if (leaders[row] != row) slots[row] = slots[leaders[row]];
}

// What the host is told of the rows that did not hit (`rows`, ascending), a column after the other:
// the row, the position of its leader among them, its page, the page's slot, its state. The columns
// after that are those of `plan`.
extern "C" __global__ void report(const i64* rows, i64 count, const u32* missed, const i64* ends,
                                  const u64* page_ids, const i64* leaders, const i64* slots,
                                  const u8* states, i64* columns) {
  const i64 at = thread_number();
  if (at >= count) return;
  const i64 row = rows[at];
  columns[at] = row;
  columns[count + at] = missed_before(missed, ends, leaders[row]);
  columns[2 * count + at] = (i64)page_ids[row];
  columns[3 * count + at] = slots[row];
  columns[4 * count + at] = states[row];
}

// -- changes ----------------------------------------------------------------------------------------

// Count the slots that are not PENDING.
extern "C" __global__ void count_wrong(SlotTable table, const i64* slots, i64 count, u64* wrong) {
  const i64 at = thread_number();
  if (at >= count) return;
  const i64 slot = slots[at];
  if (slot < 0 || slot >= (i64)table.sets * WAYS || table.states[slot] != PENDING) {
    atomicAdd(wrong, 1ull);
  }
}

__device__ inline void clear_slot(SlotTable& table, i64 slot) {
  table.tags[slot] = 0;
  table.digests[slot] = 0;
  table.states[slot] = EMPTY;
  table.priorities[slot] = 0;
}

// PENDING slots become VALID.
extern "C" __global__ void publish(SlotTable table, const i64* slots, i64 count) {
  const i64 at = thread_number();
  if (at < count) table.states[slots[at]] = VALID;
}

// PENDING slots become EMPTY, unstamped.
extern "C" __global__ void abort_slots(SlotTable table, const i64* slots, i64 count) {
  const i64 at = thread_number();
  if (at >= count) return;
  clear_slot(table, slots[at]);
  table.stamps[slots[at]] = 0;
}

// The slot of each VALID page, or -1.
extern "C" __global__ void peek(SlotTable table, const u64* page_ids, i64 count, i64* slots) {
  const i64 row = thread_number();
  if (row >= count) return;
  const i64 slot = find_slot(table, page_ids[row], fmix64(page_ids[row] ^ table.seed_word));
  slots[row] = slot >= 0 && table.states[slot] == VALID ? slot : -1;
}

// Slots become EMPTY and keep their stamps.
extern "C" __global__ void invalidate(SlotTable table, const i64* slots, i64 count) {
  const i64 at = thread_number();
  if (at < count) clear_slot(table, slots[at]);
}

// Stamps count from a base that lies `shift` later; those before it become 0.
extern "C" __global__ void rebase(SlotTable table, i64 count, u32 shift) {
  const i64 slot = thread_number();
  if (slot >= count) return;
  const u32 stamp = table.stamps[slot];
  table.stamps[slot] = stamp > shift ? stamp - shift : 0;
}
