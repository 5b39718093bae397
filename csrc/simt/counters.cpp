#include "simt/counters.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <tuple>

#include "simt/machine.h"

namespace glm::simt {
namespace {

constexpr int kBanks = 32, kBankBytes = 4, kSectorBytes = 32;

struct Place {  // a line of source
  Space space;
  const char* file;
  int line, column;
  auto operator<=>(const Place&) const = default;
};

struct Request {
  int bytes = 0;
  int lanes = 0;
  std::array<uintptr_t, kWarpSize> address = {};
  std::array<bool, kWarpSize> active = {};
};

struct Cost {
  int64_t requests = 0, cost = 0, ideal = 0;
};

// Wavefronts of accesses that are served together, and the least that they could be.
std::pair<int64_t, int64_t> wavefronts(const std::vector<uintptr_t>& addresses, int bytes) {
  std::set<uintptr_t> words;
  for (const uintptr_t address : addresses)
    for (uintptr_t word = address / kBankBytes;
         word <= (address + static_cast<uintptr_t>(bytes) - 1) / kBankBytes; ++word)
      words.insert(word);
  std::array<int64_t, kBanks> depth = {};
  for (const uintptr_t word : words) ++depth[word % kBanks];
  const auto ideal = static_cast<int64_t>((words.size() + kBanks - 1) / kBanks);
  return {*std::max_element(depth.begin(), depth.end()), ideal};
}

std::pair<int64_t, int64_t> shared_cost(const Request& request) {
  const int together = request.bytes <= 4 ? kWarpSize : kWarpSize * 4 / request.bytes;
  int64_t cost = 0, ideal = 0;
  for (int first = 0; first < kWarpSize; first += together) {
    std::vector<uintptr_t> addresses;
    for (int lane = first; lane < first + together; ++lane)
      if (request.active[static_cast<size_t>(lane)])
        addresses.push_back(request.address[static_cast<size_t>(lane)]);
    if (addresses.empty()) continue;
    const auto [actual, least] = wavefronts(addresses, request.bytes);
    cost += actual;
    ideal += least;
  }
  return {cost, ideal};
}

std::pair<int64_t, int64_t> global_cost(const Request& request) {
  std::set<uintptr_t> sectors, starts;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (!request.active[static_cast<size_t>(lane)]) continue;
    const uintptr_t address = request.address[static_cast<size_t>(lane)];
    starts.insert(address);
    sectors.insert(address / kSectorBytes);
    sectors.insert((address + static_cast<uintptr_t>(request.bytes) - 1) / kSectorBytes);
  }
  const int64_t useful = static_cast<int64_t>(starts.size()) * request.bytes;
  return {static_cast<int64_t>(sectors.size()), (useful + kSectorBytes - 1) / kSectorBytes};
}

}  // namespace

struct Counters::Impl {
  std::map<std::pair<int, Place>, int> passes;                // (thread, place): times it came by
  std::map<std::tuple<int, Place, int>, Request> unfinished;  // (warp, place, pass)
  std::map<Place, Cost> costs;

  void add(const Place& place, std::pair<int64_t, int64_t> cost_and_ideal) {
    Cost& total = costs[place];
    ++total.requests;
    total.cost += cost_and_ideal.first;
    total.ideal += cost_and_ideal.second;
  }
  void finish(const Place& place, const Request& request) {
    add(place, place.space == Space::shared ? shared_cost(request) : global_cost(request));
  }
};

Counters::Impl& Counters::impl() const {
  static Impl value;
  return value;
}

Counters& counters() {
  static Counters value;
  return value;
}

void Counters::access(Space space, const void* address, int bytes, std::source_location site) {
  if (!options().count_accesses) return;
  const Thread& thread = this_thread();
  const Place place{space, site.file_name(), static_cast<int>(site.line()), static_cast<int>(site.column())};
  const int pass = impl().passes[{thread.id, place}]++;
  const auto found = impl().unfinished.try_emplace({thread.warp, place, pass}).first;
  Request& request = found->second;
  const auto lane = static_cast<size_t>(thread.lane);
  request.bytes = bytes;
  request.address[lane] = reinterpret_cast<uintptr_t>(address);
  request.active[lane] = true;
  if (++request.lanes < kWarpSize) return;
  impl().finish(place, request);
  impl().unfinished.erase(found);
}

void Counters::matrix_access(const void* const (&rows)[8], std::source_location site) {
  if (!options().count_accesses) return;
  std::vector<uintptr_t> addresses;
  for (const void* row : rows) addresses.push_back(reinterpret_cast<uintptr_t>(row));
  const Place place{Space::shared, site.file_name(), static_cast<int>(site.line()),
                    static_cast<int>(site.column())};
  impl().add(place, wavefronts(addresses, 16));
}

void Counters::finish_block() {
  for (const auto& [key, request] : impl().unfinished) impl().finish(std::get<1>(key), request);
  impl().unfinished.clear();
  impl().passes.clear();
}

void Counters::clear() { impl() = Impl{}; }

std::vector<AccessCount> Counters::totals() const {
  std::vector<AccessCount> result;
  for (const auto& [place, cost] : impl().costs) {
    const std::string path = place.file;
    result.push_back(
        {place.space, path.substr(path.rfind('/') + 1), place.line, cost.requests, cost.cost, cost.ideal});
  }
  return result;
}

}  // namespace glm::simt
