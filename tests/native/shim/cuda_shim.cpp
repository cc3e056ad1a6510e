#include "cuda_shim.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define VF_ASAN 1
#define VF_UNCHECKED __attribute__((no_sanitize("address")))
#else
#define VF_UNCHECKED
#endif

#if defined(__x86_64__)
// What a call must preserve goes to the stack that is left, and comes back from the one that is entered. swapcontext asks the kernel for
// the signal mask each time, and AddressSanitizer then clears the shadow of a whole stack: three quarters of the mixtures' tests.
extern "C" void vf_shim_switch(void** left, void* entered);
asm(R"(
    .text
    .type vf_shim_switch, @function
vf_shim_switch:
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
    .size vf_shim_switch, . - vf_shim_switch
)");
#endif

namespace vf_shim {

int processors = 2;
unsigned order = 0;
long launches = 0;
Thread current;
unsigned char* shared_bytes = nullptr;

void fail(const char* what) {
  std::fprintf(stderr, "CUDA shim: %s (block %u, thread %u)\n", what, current.block.x, current.thread.x);
  std::abort();
}

void check_aligned(const void* p, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0) fail("misaligned vector access");
}

namespace {

constexpr size_t kStack = 256 << 10;
constexpr unsigned kWarp = 32;
constexpr size_t kSlot = 32;

enum class State { kReady, kBarrier, kShuffle, kDone };

/// Where a flow of control goes on.
class Context {
 public:
#if defined(__x86_64__)
  void begin(char* stack, size_t size, void (*main)()) {
    void** top = reinterpret_cast<void**>(stack + size - (reinterpret_cast<uintptr_t>(stack) + size) % 16);
    *--top = nullptr;  // main's return address: it does not return
    *--top = reinterpret_cast<void*>(main);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    top_ = top;
  }
  void leave_for(Context& other) { vf_shim_switch(&top_, other.top_); }

 private:
  void* top_ = nullptr;
#else
  void begin(char* stack, size_t size, void (*main)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = size;
    context_.uc_link = nullptr;
    makecontext(&context_, main, 0);
  }
  void leave_for(Context& other) { swapcontext(&context_, &other.context_); }

 private:
  ucontext_t context_;
#endif
};

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  State state = State::kDone;
  void* fake_stack = nullptr;
  char slot[kSlot];   // what this lane offers
  char taken[kSlot];  // what the lanes of its warp offered, as of the exchange
  size_t size = 0;
  std::vector<Copy> copies;  // asked for, not made
};

std::vector<std::unique_ptr<Fiber>> fibers;
Context scheduler;
const std::function<void()>* running = nullptr;
unsigned running_fiber = 0;
[[maybe_unused]] void* scheduler_fake_stack = nullptr;
[[maybe_unused]] const void* scheduler_stack = nullptr;
[[maybe_unused]] size_t scheduler_stack_size = 0;

// Frames that are left for good keep nothing poisoned: the next block's fibers begin on the same stacks.
VF_UNCHECKED void leave(Fiber& f, bool for_good) {
#if VF_ASAN
  __sanitizer_start_switch_fiber(for_good ? nullptr : &f.fake_stack, scheduler_stack, scheduler_stack_size);
#else
  (void)for_good;
#endif
  f.context.leave_for(scheduler);
#if VF_ASAN
  __sanitizer_finish_switch_fiber(f.fake_stack, &scheduler_stack, &scheduler_stack_size);
#endif
}

void enter(Fiber& f, unsigned index) {
  running_fiber = index;
  current.thread.x = index;
#if VF_ASAN
  __sanitizer_start_switch_fiber(&scheduler_fake_stack, f.stack.get(), kStack);
#endif
  scheduler.leave_for(f.context);
#if VF_ASAN
  __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
}

VF_UNCHECKED void fiber_main() {
  Fiber& f = *fibers[running_fiber];
#if VF_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
#endif
  (*running)();
  if (!f.copies.empty()) fail("a copy that was asked for and not waited for");
  f.state = State::kDone;
  leave(f, true);
}

void wait_as(State state) {
  Fiber& f = *fibers[running_fiber];
  f.state = state;
  leave(f, false);
}

std::vector<unsigned> turns(unsigned n) {
  std::vector<unsigned> v(n);
  std::iota(v.begin(), v.end(), 0u);
  if (order == 1) std::reverse(v.begin(), v.end());
  if (order > 1) std::shuffle(v.begin(), v.end(), std::mt19937(order));
  return v;
}

/// Completes a shuffle that all lanes of a warp have come to.
bool shuffle_warp(unsigned first) {
  for (unsigned t = first; t < first + kWarp; ++t) {
    if (fibers[t]->state != State::kShuffle || fibers[t]->size != fibers[first]->size) return false;
  }
  for (unsigned t = first; t < first + kWarp; ++t) {
    std::memcpy(fibers[t]->taken, fibers[t]->slot, fibers[t]->size);
    fibers[t]->state = State::kReady;
  }
  return true;
}

void start(Fiber& f) {
  f.context.begin(f.stack.get(), kStack, fiber_main);
  f.state = State::kReady;
}

/// Each warp in turn runs as far ahead of the others as barriers let it. A thread that has ended completes no barrier and no shuffle: where
/// the others wait for it, the kernel is wrong.
void run_block(unsigned threads, const std::vector<unsigned>& warps, const std::vector<unsigned>& lanes) {
  for (unsigned t = 0; t < threads; ++t) start(*fibers[t]);
  const auto all_are = [&](State state) {
    return std::all_of(fibers.begin(), fibers.begin() + threads, [&](const auto& f) { return f->state == state; });
  };
  for (;;) {
    for (const unsigned w : warps) {
      do {
        for (const unsigned lane : lanes) {
          const unsigned t = w * kWarp + lane;
          if (fibers[t]->state == State::kReady) enter(*fibers[t], t);
        }
      } while (shuffle_warp(w * kWarp));
    }
    if (all_are(State::kDone)) return;
    if (!all_are(State::kBarrier)) fail("threads wait for each other: a barrier or shuffle that not all of them reach");
    for (unsigned t = 0; t < threads; ++t) fibers[t]->state = State::kReady;
  }
}

}  // namespace

void launch(unsigned grid, unsigned block, size_t shared, const std::function<void()>& kernel) {
  if (grid == 0 || block == 0 || block % kWarp != 0 || block > 1024 || shared > 48 << 10) fail("bad launch");
  const std::unique_ptr<unsigned char[]> memory(new unsigned char[shared]);
  shared_bytes = memory.get();
  while (fibers.size() < block) fibers.push_back(std::make_unique<Fiber>());
  running = &kernel;
  ++launches;
  current.block_size.x = block;
  current.grid_size.x = grid;
  const std::vector<unsigned> warps = turns(block / kWarp), lanes = turns(kWarp);
  for (const unsigned b : turns(grid)) {
    current.block.x = b;
    std::fill_n(shared_bytes, shared, static_cast<unsigned char>(0xff));
    run_block(block, warps, lanes);
  }
}

void barrier() { wait_as(State::kBarrier); }

int barrier_or(int predicate) {
  static int any;  // blocks run one after another
  barrier();
  if (predicate != 0) any = 1;
  barrier();
  const int found = any;
  barrier();
  any = 0;
  barrier();
  return found;
}

void copy_later(void* to, const void* from, size_t bytes) {
  check_aligned(to, bytes);
  check_aligned(from, bytes);
  fibers[running_fiber]->copies.push_back({to, from, bytes});
}

void make_copies() {
  for (const Copy& copy : fibers[running_fiber]->copies) std::memcpy(copy.to, copy.from, copy.bytes);
  fibers[running_fiber]->copies.clear();
}

namespace {

/// Returns once every lane of the warp has come here; until the next exchange each one's `taken` is what it offered.
void offer(const void* value, size_t size) {
  if (size > kSlot) fail("value too large to shuffle");
  Fiber& f = *fibers[running_fiber];
  std::memcpy(f.slot, value, size);
  f.size = size;
  wait_as(State::kShuffle);
}

}  // namespace

void exchange(void* value, size_t size, unsigned source) {
  offer(value, size);
  const unsigned warp = current.thread.x / kWarp * kWarp;
  if (source < kWarp) std::memcpy(value, fibers[warp + source]->taken, size);
}

void gather(const void* value, size_t size, void* all) {
  offer(value, size);
  const unsigned warp = current.thread.x / kWarp * kWarp;
  for (unsigned lane = 0; lane < kWarp; ++lane) std::memcpy(static_cast<char*>(all) + lane * size, fibers[warp + lane]->taken, size);
}

}  // namespace vf_shim
