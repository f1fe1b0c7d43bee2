// Pages moved and read on a GPU, a warp to a page.
//
// Memory is addressed in 16-byte words; pages are multiples of 512 bytes, so that each step of a warp
// is one whole run of 32 words. Source and target may be device memory, or host memory that is mapped.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

const u32 LANES = 32;
const u32 STEPS_AT_ONCE = 8;  // words that a lane has under way: 4 KiB of a page, all before a store

// A lane's part of a page.
__device__ inline void copy_page(const uint4* from, uint4* to, u32 words) {
  for (u32 first = 0; first < words; first += STEPS_AT_ONCE * LANES) {
    uint4 held[STEPS_AT_ONCE];
#pragma unroll
    for (u32 step = 0; step < STEPS_AT_ONCE; step++)
      if (first + step * LANES < words) held[step] = from[first + step * LANES];
#pragma unroll
    for (u32 step = 0; step < STEPS_AT_ONCE; step++)
      if (first + step * LANES < words) to[first + step * LANES] = held[step];
  }
}

// Copy rows of pages. A null row list means rows 0 to count-1.
extern "C" __global__ void copy_rows(const uint4* source, const i64* source_rows, uint4* target,
                                      const i64* target_rows, i64 count, u32 page_bytes) {
  const i64 page = ((i64)blockIdx.x * blockDim.x + threadIdx.x) / LANES;
  if (page >= count) return;
  const u32 lane = threadIdx.x % LANES, words = page_bytes / sizeof(uint4);
  const uint4* from = source + (source_rows == nullptr ? page : source_rows[page]) * words + lane;
  uint4* to = target + (target_rows == nullptr ? page : target_rows[page]) * words + lane;
  copy_page(from, to, words);
}

// Copy the pages that probe_batch (index.cu) found for a batch that is described in memory: words 1
// and 3 are how many rows it has, and where they are to go.
extern "C" __global__ void copy_found(const uint4* source, const i64* slots, const u64* batch,
                                      u32 page_bytes) {
  const i64 page = ((i64)blockIdx.x * blockDim.x + threadIdx.x) / LANES;
  if (page >= (i64)batch[1] || slots[page] < 0) return;
  const u32 lane = threadIdx.x % LANES, words = page_bytes / sizeof(uint4);
  copy_page(source + slots[page] * words + lane, (uint4*)batch[3] + page * words + lane, words);
}

// Read rows of pages in place: the sum of each page's 64-bit words, modulo 2**64.
extern "C" __global__ void sum_rows(const uint4* source, const i64* source_rows, u64* sums,
                                     i64 count, u32 page_bytes) {
  const i64 page = ((i64)blockIdx.x * blockDim.x + threadIdx.x) / LANES;
  if (page >= count) return;
  const u32 lane = threadIdx.x % LANES, words = page_bytes / sizeof(uint4);
  const uint4* from = source + (source_rows == nullptr ? page : source_rows[page]) * words + lane;
  u64 sum = 0;
#pragma unroll 8
  for (u32 at = 0; at < words; at += LANES) {
    const uint4 word = from[at];
    sum += (u64)word.y << 32 | word.x;
    sum += (u64)word.w << 32 | word.z;
  }
  for (int half = LANES / 2; half > 0; half /= 2) sum += __shfl_xor_sync(~0u, sum, half);
  if (lane == 0) sums[page] = sum;
}
