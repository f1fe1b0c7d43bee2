// The slots of a page index as arrays, and how pages map to them.
//
// The same as kernels.py, bit for bit. Compiled with -DWAYS=8, 16 or 32.
#pragma once

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

enum State : u8 { EMPTY = 0, PENDING = 1, VALID = 2 };  // pages.py: PageState

const u32 ALL_LANES = 0xffffffffu;

// One element per slot; a set's digests begin at a multiple of WAYS bytes.
struct SlotTable {
  u64* tags;        // page id of a slot that is not EMPTY
  u8* digests;      // low byte of that page's hash
  u8* states;
  u32* stamps;      // last touch, counted from the owner's base epoch
  u32* priorities;
  u64 sets;
  u64 seed_word;    // XORed into a page id before it is hashed
};

// MurmurHash3's 64-bit finalizer; see hashing.py.
__device__ inline u64 fmix64(u64 word) {
  word ^= word >> 33;
  word *= 0xff51afd7ed558ccdull;
  word ^= word >> 33;
  word *= 0xc4ceb9fe1a85ec53ull;
  return word ^ word >> 33;
}

__device__ inline i64 set_of(u64 hashed, u64 sets) { return (i64)__umul64hi(hashed, sets); }

__device__ inline i64 first_slot(const SlotTable& table, u64 hashed) {
  return set_of(hashed, table.sets) * WAYS;
}

// Bit 8i+7 of the result is set where byte i of the word equals the pattern's; bits above the lowest
// of them may be false (Warren, Hacker's Delight, 6-1), so whoever asks compares the tag as well.
__device__ inline u64 equal_bytes(u64 word, u64 pattern) {
  const u64 difference = word ^ pattern;
  return (difference - 0x0101010101010101ull) & ~difference & 0x8080808080808080ull;
}

// The slot of a page, VALID or PENDING, or -1.
__device__ inline i64 find_slot(const SlotTable& table, u64 page_id, u64 hashed) {
  const i64 first = first_slot(table, hashed);
  const u64 pattern = (hashed & 0xff) * 0x0101010101010101ull;
  u64 words[WAYS / 8];
#if WAYS == 8
  words[0] = *(const u64*)(table.digests + first);
#else
#pragma unroll
  for (int at = 0; at < WAYS / 16; at++) {
    const ulonglong2 two = ((const ulonglong2*)(table.digests + first))[at];
    words[2 * at] = two.x;
    words[2 * at + 1] = two.y;
  }
#endif
#pragma unroll
  for (int at = 0; at < WAYS / 8; at++) {
    for (u64 marks = equal_bytes(words[at], pattern); marks; marks &= marks - 1) {
      const i64 slot = first + 8 * at + (__ffsll((i64)marks) - 1) / 8;
      if (table.tags[slot] == page_id && table.states[slot] != EMPTY) return slot;
    }
  }
  return -1;
}
