#include "simt/machine.h"

#include <bit>
#include <map>

#include "simt/counters.h"

namespace glm::simt {

Options& options() {
  static Options value;
  return value;
}

int64_t Options::shared_bytes() const { return (hopper ? 227 : ada ? 99 : 163) * 1024; }

Machine& machine() {
  static Machine value;
  return value;
}

std::string describe(Site site) {
  const std::string path = site.file_name();
  return path.substr(path.rfind('/') + 1) + ":" + std::to_string(site.line());
}

std::string describe_here(Site site) {
  const dim3 block = machine().block_index();
  std::ostringstream text;
  text << describe(site) << " (thread " << this_thread().id << " of block " << block.x << "," << block.y
       << "," << block.z << ")";
  return text.str();
}

// ---- the grid
// ------------------------------------------------------------------------------------------------

void Machine::run(dim3 grid, dim3 block, int64_t shared_bytes, void (*kernel)(const void*),
                  const void* arguments) {
  const uint64_t threads = static_cast<uint64_t>(block.x) * block.y * block.z;
  if (threads == 0 || threads > kMaxBlockThreads || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
      grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    throw std::runtime_error("launch: a grid or block dimension is out of range");
  const int64_t most = options().shared_bytes();
  if (shared_bytes > most)
    throw std::runtime_error("launch: " + std::to_string(shared_bytes) + " bytes of shared memory, at most " +
                             std::to_string(most));
  grid_dim_ = grid;
  block_dim_ = block;
  block_threads_ = static_cast<int>(threads);
  kernel_ = kernel;
  arguments_ = arguments;
  random_state_ = options().seed;
  while (static_cast<int>(threads_.size()) < block_threads_) threads_.push_back(std::make_unique<Thread>());
  shared_.start_launch(shared_bytes);
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        block_index_ = {x, y, z};
        run_block();
      }
}

void Machine::run_block() {
  ++block_epoch_;  // what earlier blocks did to shared memory lies before all that this one does
  barrier_arrived_ = 0;
  last_picked_ = options().order == Order::reversed ? 0 : block_threads_ - 1;
  error_ = nullptr;
  shared_.poison();
  warps_.assign(static_cast<size_t>((block_threads_ + kWarpSize - 1) / kWarpSize), Warp{});
  for (int id = 0; id < block_threads_; ++id) {
    Thread& thread = *threads_[static_cast<size_t>(id)];
    const unsigned u = static_cast<unsigned>(id);
    thread.index = {u % block_dim_.x, u / block_dim_.x % block_dim_.y, u / block_dim_.x / block_dim_.y};
    thread.id = id;
    thread.lane = id % kWarpSize;
    thread.warp = id / kWarpSize;
    thread.finished = false;
    thread.copies.clear();
    thread.products.clear();
    thread.unpublished.clear();
    thread.fiber.start(&Machine::thread_main, this);
    warps_[static_cast<size_t>(thread.warp)].ready |= 1u << thread.lane;
  }
  for (Warp& warp : warps_) warp.live = warp.ready;
  while (Thread* next = pick()) {
    thread_ = next;
    last_picked_ = next->id;
    next->fiber.resume();
    if (error_) std::rethrow_exception(error_);
  }
  for (const Warp& warp : warps_)
    if (warp.live != 0) throw std::runtime_error(describe_deadlock());
  counters().finish_block();
}

void Machine::thread_main(void* self) {
  Machine& machine = *static_cast<Machine*>(self);
  Thread& thread = machine.thread();
  try {
    machine.kernel_(machine.arguments_);
    thread.copies.check_all_waited();
    thread.products.check_all_waited();
  } catch (...) {
    machine.error_ = std::current_exception();
  }
  thread.finished = true;
  Warp& warp = machine.warps_[static_cast<size_t>(thread.warp)];
  warp.ready &= ~(1u << thread.lane);
  warp.live &= ~(1u << thread.lane);
}

// ---- who goes on
// ---------------------------------------------------------------------------------------------

Thread* Machine::pick_from(int warp, int first_lane, bool upwards) {
  const uint32_t ready = warps_[static_cast<size_t>(warp)].ready;
  const uint32_t wanted = upwards
                              ? (first_lane < kWarpSize ? ready & (kFullMask << first_lane) : 0u)
                              : (first_lane >= 0 ? ready & (kFullMask >> (kWarpSize - 1 - first_lane)) : 0u);
  if (wanted == 0) return nullptr;
  const int lane = upwards ? std::countr_zero(wanted) : kWarpSize - 1 - std::countl_zero(wanted);
  return threads_[static_cast<size_t>(warp * kWarpSize + lane)].get();
}

Thread* Machine::pick() {
  const int warps = static_cast<int>(warps_.size());
  const int last_warp = last_picked_ / kWarpSize, last_lane = last_picked_ % kWarpSize;
  switch (options().order) {
    case Order::in_order:
    case Order::reversed: {
      const bool up = options().order == Order::in_order;
      if (Thread* next = pick_from(last_warp, up ? last_lane + 1 : last_lane - 1, up)) return next;
      for (int i = 1; i <= warps; ++i) {
        const int warp = (last_warp + (up ? i : warps - i)) % warps;
        if (Thread* next = pick_from(warp, up ? 0 : kWarpSize - 1, up)) return next;
      }
      return nullptr;
    }
    case Order::skewed: {
      if (Thread* next = pick_from(last_warp, 0, true)) return next;
      for (int warp = 0; warp < warps; ++warp)
        if (Thread* next = pick_from(warp, 0, true)) return next;
      return nullptr;
    }
    case Order::random: {
      random_state_ = random_state_ * 6364136223846793005u + 1442695040888963407u;
      const unsigned bits = static_cast<unsigned>(random_state_ >> 33);
      const bool stay = bits % 8 != 0;  // long bursts of one warp are the hard cases
      const int first = stay ? last_warp : static_cast<int>(bits / 8 % static_cast<unsigned>(warps));
      const int lane = static_cast<int>(bits >> 24) % kWarpSize;
      for (int i = 0; i < warps; ++i) {
        const int warp = (first + i) % warps;
        if (Thread* next = pick_from(warp, lane, true)) return next;
        if (Thread* next = pick_from(warp, 0, true)) return next;
      }
      return nullptr;
    }
  }
  return nullptr;
}

void Machine::wait(const char* what, Site site) {
  Thread& thread = *thread_;
  thread.waits_at = what;
  thread.waits_site = site;
  warps_[static_cast<size_t>(thread.warp)].ready &= ~(1u << thread.lane);
  thread.fiber.suspend();
}

std::string Machine::describe_deadlock() const {
  std::map<std::string, int> places;
  for (int id = 0; id < block_threads_; ++id) {
    const Thread& thread = *threads_[static_cast<size_t>(id)];
    ++places[thread.finished ? "have returned"
                             : std::string("wait at ") + thread.waits_at + " " + describe(thread.waits_site)];
  }
  std::string text = "deadlock: a barrier or warp collective was not reached by all of its threads";
  for (const auto& [place, count] : places) text += "; " + std::to_string(count) + " " + place;
  return text;
}

// ---- barriers
// ------------------------------------------------------------------------------------------------

void Machine::block_barrier(Site site) {
  if (barrier_arrived_ == 0) {
    barrier_site_ = site;
  } else if (site.line() != barrier_site_.line() || site.file_name() != barrier_site_.file_name()) {
    fault(site, "divergent barrier: other threads of the block wait at the __syncthreads() of ",
          describe(barrier_site_));
  }
  if (++barrier_arrived_ < block_threads_) return wait("__syncthreads", site);
  barrier_arrived_ = 0;
  ++block_epoch_;
  for (Warp& warp : warps_) warp.ready = warp.live;
}

bool Machine::join_warp(const char* what, uint32_t mask, void* slot, Slots& slots, Site site) {
  Thread& thread = *thread_;
  Warp& warp = warps_[static_cast<size_t>(thread.warp)];
  const uint32_t self = 1u << thread.lane;
  if ((mask & self) == 0) fault(site, what, ": the calling lane is not in its own mask");
  if ((mask & ~warp.live) != 0) fault(site, what, ": the mask names lanes that have returned or never were");
  Meeting& meeting = warp.meetings[std::countr_zero(mask)];
  if (meeting.arrived == 0) {
    meeting.what = what;
    meeting.site = site;
    meeting.mask = mask;
  } else if (meeting.what != what || meeting.mask != mask || meeting.site.line() != site.line()) {
    fault(site, "divergent warp: this lane is at ", what, ", others wait at ", meeting.what, " ",
          describe(meeting.site));
  }
  meeting.arrived |= self;
  meeting.slots[thread.lane] = slot;
  if (meeting.arrived != mask) {
    wait(what, site);
    return false;
  }
  for (int lane = 0; lane < kWarpSize; ++lane)
    slots[lane] = (mask >> lane & 1u) != 0 ? meeting.slots[lane] : nullptr;
  return true;
}

void Machine::release_warp(uint32_t mask) {
  Warp& warp = warps_[static_cast<size_t>(thread_->warp)];
  warp.meetings[std::countr_zero(mask)].arrived = 0;
  warp.ready |= mask;
}

}  // namespace glm::simt
