// Runs a CUDA kernel on the host: the blocks of a grid one after another, the threads of a block as fibers.
// A thread runs until it must wait for others (a barrier, a collective of its warp); which of the ready ones
// goes on is the schedule's choice. A kernel is right when its result is the same under every schedule.
#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <source_location>
#include <string>
#include <vector>

#include "core/check.h"
#include "simt/async_copy.h"
#include "simt/async_product.h"
#include "simt/fiber.h"
#include "simt/shared_memory.h"

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace glm::simt {

using Site = std::source_location;  // where in the kernel something happens

inline constexpr int kWarpSize = 32;
inline constexpr int kMaxBlockThreads = 1024;
inline constexpr uint32_t kFullMask = 0xffffffffu;

enum class Order : int {
  in_order,  // lowest thread first, all warps side by side
  reversed,  // highest thread first
  skewed,    // one warp runs as far as it can before another moves
  random,    // any ready thread, in bursts
};

struct Options {
  Order order = Order::in_order;
  uint64_t seed = 0;             // of Order::random
  bool deferred_copies = false;  // cp.async and wgmma happen when they are waited for; else at once
  bool check_races = true;       // see shared_memory.h
  bool count_accesses = false;   // bank conflicts and sectors, see counters.h
  bool hopper = false;           // sm_90: kernels of warpgroups where an op has them
  bool ada = false;              // sm_86, sm_89: less shared memory

  int64_t shared_bytes() const;  // what a block may have
};

Options& options();

// What the lanes of one warp bring to a collective, by lane. A lane that is not in the mask is null.
using Slots = void* [kWarpSize];

struct Thread {
  Fiber fiber;
  dim3 index;
  int id = 0;
  int lane = 0;
  int warp = 0;
  uint32_t warp_epoch = 0;  // __syncwarp()s passed: orders memory accesses within the warp
  bool finished = false;
  const char* waits_at = nullptr;
  Site waits_site;
  AsyncCopies copies;
  AsyncProducts products;            // of the warp, where this is its first lane
  std::vector<int64_t> unpublished;  // see SharedMemory::publish
};

class Machine {
 public:
  // Runs kernel(arguments) for each thread of each block. Throws std::runtime_error for what a GPU would
  // answer with a hang, a fault or silence.
  void run(dim3 grid, dim3 block, int64_t shared_bytes, void (*kernel)(const void*), const void* arguments);

  Thread& thread() { return *thread_; }
  dim3 block_index() const { return block_index_; }
  dim3 block_dim() const { return block_dim_; }
  dim3 grid_dim() const { return grid_dim_; }
  SharedMemory& shared() { return shared_; }
  uint32_t block_epoch() const { return block_epoch_; }

  void block_barrier(Site site);

  // A meeting of the lanes in `mask`: true for the last to arrive, which finds everyone's slot in `slots`,
  // does the work of all and calls release_warp(mask). The others return false after that.
  bool join_warp(const char* what, uint32_t mask, void* slot, Slots& slots, Site site);
  void release_warp(uint32_t mask);

 private:
  struct Meeting {
    const char* what = nullptr;
    Site site;
    uint32_t mask = 0, arrived = 0;
    Slots slots = {};
  };
  struct Warp {
    uint32_t ready = 0;
    uint32_t live = 0;            // lanes that have not returned
    Meeting meetings[kWarpSize];  // by the lowest lane of the mask: disjoint groups may meet at once
  };

  void run_block();
  Thread* pick();
  Thread* pick_from(int warp, int first_lane, bool upwards);
  void wait(const char* what, Site site);
  std::string describe_deadlock() const;
  static void thread_main(void* self);

  dim3 grid_dim_, block_dim_, block_index_;
  int block_threads_ = 0;
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<Warp> warps_;
  Thread* thread_ = nullptr;
  int last_picked_ = 0;
  uint64_t random_state_ = 0;

  int barrier_arrived_ = 0;
  Site barrier_site_;
  uint32_t block_epoch_ = 0;

  SharedMemory shared_;
  void (*kernel_)(const void*) = nullptr;
  const void* arguments_ = nullptr;
  std::exception_ptr error_;
};

Machine& machine();
inline Thread& this_thread() { return machine().thread(); }

// Where a thread is, for messages: "kernel.cu:12 (thread 3 of block 0,1,0)".
std::string describe(Site site);
std::string describe_here(Site site);

template <class... Parts>
[[noreturn]] [[gnu::cold]] [[gnu::noinline]] void fault(Site site, const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  message << ", at " << describe_here(site);
  throw std::runtime_error(message.str());
}

}  // namespace glm::simt
