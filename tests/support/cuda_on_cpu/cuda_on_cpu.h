// CUDA C++ kernels on a CPU, for tests: included before a .cu file that g++ compiles.
//
// Warps run one after the other, or several at once on threads of their own. The 32 lanes of a warp
// take turns at its collectives: as fibers, which is fast; or, with -DLANES_ARE_THREADS, as threads,
// so that the sanitizers see every access of every lane. There are no block-wide barriers.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#ifdef LANES_ARE_THREADS
#include <condition_variable>
#include <mutex>
#endif

#define __global__
#define __device__
#define __forceinline__ inline

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(16) ulonglong2 {
  unsigned long long x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
static thread_local Dim3 threadIdx, blockIdx, blockDim, gridDim;

// -- a warp -----------------------------------------------------------------------------------------

namespace on_cpu {

const unsigned LANES = 32;

// What the lanes of a warp tell each other. A lane is at most one round ahead of the others, so two
// rounds of values are kept.
struct Exchange {
  uint64_t values[2][LANES];
  unsigned rounds[LANES];
  uint32_t live;

  void begin(uint32_t lanes) {
    std::memset(this, 0, sizeof *this);
    live = lanes;
  }
  bool complete(unsigned round) const {
    for (unsigned lane = 0; lane < LANES; lane++)
      if ((live >> lane & 1) && rounds[lane] <= round) return false;
    return true;
  }
  uint32_t present(unsigned round) const {
    uint32_t lanes = 0;
    for (unsigned lane = 0; lane < LANES; lane++)
      if (rounds[lane] > round) lanes |= 1u << lane;
    return lanes;
  }
};

struct Round {
  const uint64_t* values;
  uint32_t lanes;  // that took part
};

#ifdef LANES_ARE_THREADS

struct Warp {
  Exchange exchange;
  std::mutex mutex;
  std::condition_variable changed;
};
static thread_local Warp* warp;

inline Round share(uint64_t value) {
  const unsigned lane = threadIdx.x % LANES;
  std::unique_lock<std::mutex> lock(warp->mutex);
  const unsigned round = warp->exchange.rounds[lane]++;
  warp->exchange.values[round & 1][lane] = value;
  warp->changed.notify_all();
  warp->changed.wait(lock, [round] { return warp->exchange.complete(round); });
  return {warp->exchange.values[round & 1], warp->exchange.present(round)};
}

template <class Body>
void run_warp(unsigned lanes, unsigned first_thread, const Body& body) {
  Warp mine;
  mine.exchange.begin(lanes == LANES ? ~0u : (1u << lanes) - 1);
  const Dim3 block = blockIdx, threads = blockDim, grid = gridDim;
  std::vector<std::thread> running;
  for (unsigned lane = 0; lane < lanes; lane++)
    running.emplace_back([&, lane] {
      warp = &mine;
      blockIdx = block, blockDim = threads, gridDim = grid;
      threadIdx.x = first_thread + lane;
      body();
      const std::lock_guard<std::mutex> lock(mine.mutex);
      mine.exchange.live &= ~(1u << lane);
      mine.changed.notify_all();
    });
  for (auto& thread : running) thread.join();
}

#else

const size_t STACK_BYTES = 1 << 16;

struct Fibers {
  Exchange exchange;
  void* scheduler = nullptr;  // stack pointers of what is not running
  void* lanes[LANES];
  std::vector<char> stacks;
  unsigned lane = 0, first_thread = 0;
  void (*body)(const void*) = nullptr;
  const void* argument = nullptr;
};
inline Fibers& fibers() {
  static thread_local Fibers one;
  return one;
}

#if !defined(__x86_64__)
#error "fibers are written for x86-64: compile with -DLANES_ARE_THREADS"
#endif
// Save the callee-saved registers and the stack pointer, load those of another fiber.
extern "C" void switch_stacks(void** save, void* load);
asm(R"(
.text
.globl switch_stacks
.type switch_stacks, @function
switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size switch_stacks, .-switch_stacks
)");

inline void let_others_run() {
  Fibers& all = fibers();
  switch_stacks(&all.lanes[all.lane], all.scheduler);
}

inline Round share(uint64_t value) {
  Fibers& all = fibers();
  const unsigned lane = all.lane;
  const unsigned round = all.exchange.rounds[lane]++;
  all.exchange.values[round & 1][lane] = value;
  while (!all.exchange.complete(round)) let_others_run();
  return {all.exchange.values[round & 1], all.exchange.present(round)};
}

inline void run_lane() {
  Fibers& all = fibers();
  all.body(all.argument);
  all.exchange.live &= ~(1u << all.lane);
  let_others_run();  // for ever: a lane that has ended is not resumed
  std::abort();
}

template <class Body>
void run_warp(unsigned lanes, unsigned first_thread, const Body& body) {
  Fibers& all = fibers();
  all.stacks.resize(LANES * STACK_BYTES);
  all.exchange.begin(lanes == LANES ? ~0u : (1u << lanes) - 1);
  all.body = [](const void* it) { (*static_cast<const Body*>(it))(); };
  all.argument = &body;
  for (unsigned lane = 0; lane < lanes; lane++) {
    const uintptr_t end = (uintptr_t)(all.stacks.data() + (lane + 1) * STACK_BYTES);
    void** top = (void**)(end & ~(uintptr_t)15);
    *--top = nullptr;  // where run_lane would return to; it keeps the stack aligned as a call does
    *--top = (void*)run_lane;
    for (int saved = 0; saved < 6; saved++) *--top = nullptr;
    all.lanes[lane] = top;
  }
  while (all.exchange.live)
    for (unsigned lane = 0; lane < lanes; lane++)
      if (all.exchange.live >> lane & 1) {
        all.lane = lane;
        threadIdx.x = first_thread + lane;
        switch_stacks(&all.scheduler, all.lanes[lane]);
      }
}

#endif

// -- launching --------------------------------------------------------------------------------------

template <class... Parameters, size_t... At>
void call(void (*kernel)(Parameters...), void** arguments, std::index_sequence<At...>) {
  kernel(*static_cast<std::decay_t<Parameters>*>(arguments[At])...);
}

// Arguments are addresses of values, as for cuLaunchKernel. Warps are dealt to `workers` threads.
template <class... Parameters>
void launch(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, void** arguments,
            unsigned workers) {
  const unsigned warps = (threads + LANES - 1) / LANES;
  const auto work = [=](unsigned worker) {
    gridDim.x = blocks;
    blockDim.x = threads;
    for (uint64_t number = worker; number < (uint64_t)blocks * warps; number += workers) {
      const unsigned first = number % warps * LANES;
      blockIdx.x = number / warps;
      run_warp(threads - first < LANES ? threads - first : LANES, first, [=] {
        call(kernel, arguments, std::index_sequence_for<Parameters...>{});
      });
    }
  };
  if (workers == 1) return work(0);
  std::vector<std::thread> running;
  for (unsigned worker = 0; worker < workers; worker++) running.emplace_back(work, worker);
  for (auto& thread : running) thread.join();
}

template <class T>
uint64_t bits(T value) {
  static_assert(sizeof value <= sizeof(uint64_t));
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof value);
  return word;
}

}  // namespace on_cpu

#define LAUNCHABLE(kernel)                                                            \
  extern "C" void launch_##kernel(unsigned blocks, unsigned threads, void** arguments, \
                                  unsigned workers) {                                 \
    on_cpu::launch(kernel, blocks, threads, arguments, workers);                      \
  }

// -- what kernels call ------------------------------------------------------------------------------

inline unsigned __ballot_sync(unsigned, bool predicate) {
  const on_cpu::Round round = on_cpu::share(predicate);
  unsigned word = 0;
  for (unsigned lane = 0; lane < on_cpu::LANES; lane++)
    if ((round.lanes >> lane & 1) && round.values[lane]) word |= 1u << lane;
  return word;
}
template <class T>
T __shfl_sync(unsigned, T value, int source) {
  const on_cpu::Round round = on_cpu::share(on_cpu::bits(value));
  T got;
  std::memcpy(&got, &round.values[source % on_cpu::LANES], sizeof got);
  return got;
}
template <class T>
T __shfl_xor_sync(unsigned lanes, T value, int other) {
  return __shfl_sync(lanes, value, (int)(threadIdx.x % on_cpu::LANES) ^ other);
}
inline int __popc(unsigned word) { return __builtin_popcount(word); }
inline int __ffsll(long long word) { return __builtin_ffsll(word); }
inline unsigned long long __umul64hi(unsigned long long one, unsigned long long other) {
  return (unsigned __int128)one * other >> 64;
}
template <class T>
void __stcg(T* to, T value) {
  __atomic_store_n(to, value, __ATOMIC_RELAXED);
}
template <class T>
T atomicAdd(T* to, T value) {
  return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}
