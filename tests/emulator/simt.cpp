// Threads, barriers and blocks: who runs when, and the reports where nobody can.

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>
#include <sstream>

#include "machine.h"

namespace simt {

Machine m;

std::string text(Line line) {
  // Folder and name: each operation has a forward.cu.
  std::string file = line.file_name();
  size_t folder = file.rfind('/', file.rfind('/') - 1);
  return file.substr(folder == std::string::npos ? 0 : folder + 1) + ":" + std::to_string(line.line());
}

std::string thread_text(int thread) {
  return "thread " + std::to_string(thread) + " (warp " + std::to_string(thread / 32) + ", lane " +
         std::to_string(thread % 32) + ")";
}

namespace {

bool same(Line a, Line b) { return a.line() == b.line() && !strcmp(a.file_name(), b.file_name()); }

void thread_main() {
  (*m.kernel)();
  Thread& self = m.threads[m.running];
  if (self.copies_done < self.copies.size()) fault("ends before its asynchronous copies have arrived", {});
  self.state = Thread::finished;
  ++m.done;
  for (;;) yield();
}

// Who waits where, for a report on a block in which nobody can go on.
std::string waiting_text() {
  std::ostringstream out;
  std::vector<bool> told(m.threads.size());
  for (size_t i = 0; i < m.threads.size(); ++i) {
    if (told[i]) continue;
    const Thread& first = m.threads[i];
    std::string group;
    int count = 0;
    for (size_t k = i; k < m.threads.size(); ++k) {
      const Thread& other = m.threads[k];
      if (other.state != first.state || (other.state != Thread::finished && !same(other.line, first.line))) continue;
      told[k] = true;
      if (++count <= 4) group += (count > 1 ? ", " : "") + std::to_string(k);
    }
    out << "\n  " << count << " threads (" << group << (count > 4 ? ", ..." : "") << "; warp " << i / 32 << ") ";
    if (first.state == Thread::finished) out << "have left the kernel";
    if (first.state == Thread::at_barrier) out << "wait at the block barrier " << text(first.line);
    if (first.state == Thread::at_group)
      out << "wait at barrier " << first.barrier << " for " << m.groups[first.barrier].threads << " threads, "
          << text(first.line);
    if (first.state == Thread::at_rendezvous) out << "wait for the rest of their warp at " << text(first.line);
  }
  return out.str();
}

uint64_t draw() {  // splitmix64
  uint64_t z = m.random += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

template <class T>
void arrange(std::vector<T>& order) {
  std::iota(order.begin(), order.end(), T(0));
  if (m.order == Order::descending) std::reverse(order.begin(), order.end());
  if (m.order == Order::random)
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[draw() % i]);
}

void start_block(int64_t shared_bytes) {
  // NaN in every floating type, so that a value nobody wrote does not pass for one.
  m.shared.assign(shared_bytes, char(0xff));
  m.shared_shadow.grow(shared_bytes);
  m.waiting = m.done = 0;
  m.block_clock = ++m.clock;
  m.started.push_back({m.clock, m.block});
  for (Group& group : m.groups) group.threads = 0, group.waiting.clear();
  for (Warp& warp : m.warps) {
    warp.arrived = 0, warp.clock = m.clock;
    std::fill_n(warp.seen, kMostWarps, m.clock - 1);
  }
  for (size_t i = 0; i < m.threads.size(); ++i) {
    Thread& thread = m.threads[i];
    thread.state = Thread::ready;
    thread.copies.clear(), thread.groups.clear();
    thread.groups_done = thread.copies_done = 0;
    thread.context.start((*m.stacks)[static_cast<int>(i)], Stacks::kBytes, thread_main);
  }
  if (m.watching) m.watch.start(static_cast<int>(m.threads.size()));
}

void run_block(int64_t shared_bytes) {
  start_block(shared_bytes);
  int count = static_cast<int>(m.threads.size());
  std::vector<int> warps(m.warps.size()), lanes(32);
  while (m.done < count) {
    bool progress = false;
    arrange(warps);
    for (int warp : warps) {
      for (bool again = true; again;) {
        again = false;
        arrange(lanes);
        for (int lane : lanes) {
          if (m.threads[warp * 32 + lane].state != Thread::ready) continue;
          m.running = warp * 32 + lane;
          m.scheduler.switch_to(m.threads[m.running].context);
          if (!m.report.empty()) return;
          again = progress = true;
        }
      }
    }
    if (progress || m.done == count) continue;
    std::ostringstream out;
    out << "deadlock in block (" << m.x << ", " << m.y << "):" << waiting_text();
    m.report = out.str();
    return;
  }
  if (m.watching) finish_watching();
}

// After a barrier of these warps each knows all that they did before it.
template <class Warps>
void join(const Warps& warps) {
  uint32_t seen[kMostWarps] = {};
  for (int warp : warps) {
    for (int i = 0; i < kMostWarps; ++i) seen[i] = std::max(seen[i], m.warps[warp].seen[i]);
  }
  for (int warp : warps) seen[warp] = m.warps[warp].clock;
  ++m.clock;
  for (int warp : warps) {
    std::copy_n(seen, kMostWarps, m.warps[warp].seen);
    m.warps[warp].clock = m.clock;
  }
}

}  // namespace

void set_order(Order order, uint64_t seed) {
  m.order = order;
  m.random = seed;
}
void set_watching(bool on) { m.watching = on; }
void add_buffer(const char* name, void* data, int64_t bytes, Contents contents) {
  if (!data || !bytes) return;
  m.buffers.push_back({name, static_cast<char*>(data), bytes, contents, {}, {}, {}});
  if (contents != Contents::input) m.buffers.back().shadow.grow(bytes);
}
void clear_buffers() { m.buffers.clear(); }
Counters counters() { return m.counters; }
void reset_counters() {
  m.counters = {};
  m.conflicts.clear();
  m.products.clear();
}
const std::string& conflicts() {
  m.conflicts_text.clear();
  for (const auto& [place, count] : m.conflicts) m.conflicts_text += place + ": " + std::to_string(count) + "\n";
  return m.conflicts_text;
}
const std::string& report() { return m.report; }
void set_sample(int64_t blocks) { m.sample = blocks; }
void set_find_body(FindBody find) { m.find_body = find; }
Body other_body(const Launch& launch) {
  if (!m.find_body) return nullptr;
  Body body = m.find_body(&launch);
  return body ? body : [](void* const*) { fault("runs a kernel of which there is no other body", {}); };
}
int thread_index() { return m.running; }
int64_t block_x() { return m.x; }
int64_t block_y() { return m.y; }
void count_matrix_product() { ++m.counters.matrix_products; }
void count_bank_conflicts(int64_t count, Line line) {
  if (!count) return;
  m.counters.bank_conflicts += count;
  m.conflicts[text(line)] += count;
}

void fault(const std::string& what, Line line) {
  std::ostringstream out;
  if (line.line()) out << text(line) << ": ";
  out << thread_text(m.running) << " of block (" << m.x << ", " << m.y << ") " << what;
  m.report = out.str();
  for (;;) yield();
}

bool launch(int64_t grid_x, int64_t grid_y, int threads, int64_t shared_bytes, const std::function<void()>& kernel) {
  m.report.clear();
  if (grid_x < 1 || grid_y < 1 || threads < 1 || threads > 1024 || threads % 32 || grid_x > 0x7fffffff ||
      grid_y > 65535 || shared_bytes < 0 || shared_bytes > 227 * 1024) {
    std::ostringstream out;
    out << "no GPU takes this launch: grid " << grid_x << " x " << grid_y << ", " << threads << " threads, "
        << shared_bytes << " bytes of shared memory";
    m.report = out.str();
    return false;
  }
  ++m.counters.launches;
  m.kernel = &kernel;
  m.threads.resize(threads);
  m.warps.resize(threads / 32);
  if (!m.stacks) m.stacks = std::make_unique<Stacks>(1024);
  m.launch_clock = ++m.clock;
  m.started.clear();
  for (Buffer& buffer : m.buffers) buffer.read.clear(), buffer.written.clear();
  std::vector<int64_t> blocks(grid_x * grid_y);
  arrange(blocks);
  if (int64_t all = grid_x * grid_y, few = m.sample; few && few < all) {
    for (int64_t i = 0; i < few; ++i) blocks[i] = (2 * i + 1) * all / (2 * few);
    blocks.resize(std::max<int64_t>(few, 0));  // fewer than none: no block runs
  }
  for (int64_t block : blocks) {
    m.block = block, m.x = block % grid_x, m.y = block / grid_x;
    run_block(shared_bytes);
    if (!m.report.empty()) return false;
  }
  return true;
}

void block_barrier(Line line) {
  Thread& self = m.threads[m.running];
  if (m.waiting && !same(m.barrier_line, line))
    fault("reaches a block barrier while " + std::to_string(m.waiting) + " threads wait at another one, " +
              text(m.barrier_line),
          line);
  m.barrier_line = self.line = line;
  if (++m.waiting < static_cast<int>(m.threads.size())) {
    self.state = Thread::at_barrier;
    yield();
    return;
  }
  m.waiting = 0;
  ++m.counters.barriers;
  ++m.clock;
  for (Warp& warp : m.warps) {
    warp.clock = m.clock;
    std::fill_n(warp.seen, kMostWarps, m.clock - 1);
  }
  for (Thread& thread : m.threads) thread.state = Thread::ready;
  if (m.watching) finish_watching();
}

void group_barrier(int name, int threads, Line line) {
  Thread& self = m.threads[m.running];
  if (name < 1 || name >= kGroups) fault("names barrier " + std::to_string(name) + "; there are 1 to 15", line);
  if (threads < 32 || threads % 32 || threads > static_cast<int>(m.threads.size()))
    fault("wants a barrier of " + std::to_string(threads) + " threads in a block of " +
              std::to_string(m.threads.size()) + ": whole warps of the block are possible",
          line);
  Group& group = m.groups[name];
  if (group.threads && group.threads != threads)
    fault("comes to barrier " + std::to_string(name) + " for " + std::to_string(threads) +
              " threads while others wait " + "there for " + std::to_string(group.threads) + ", " + text(group.line),
          line);
  group.threads = threads;
  group.line = self.line = line;
  group.waiting.push_back(m.running);
  if (static_cast<int>(group.waiting.size()) < threads) {
    self.state = Thread::at_group, self.barrier = name;
    yield();
    return;
  }
  std::vector<int> lanes(m.warps.size()), warps;
  for (int thread : group.waiting) ++lanes[thread / 32];
  for (size_t warp = 0; warp < lanes.size(); ++warp) {
    if (lanes[warp] == 32)
      warps.push_back(static_cast<int>(warp));
    else if (lanes[warp])
      fault("completes barrier " + std::to_string(name) + " with " + std::to_string(lanes[warp]) + " lanes of warp " +
                std::to_string(warp) + " only",
            line);
  }
  ++m.counters.barriers;
  join(warps);
  for (int thread : group.waiting) m.threads[thread].state = Thread::ready;
  group.threads = 0;
  group.waiting.clear();
}

void rendezvous(const char* what, void* brought, Run run, const void* f, uint32_t mask, bool orders, Line line) {
  int lane = m.running % 32, first = m.running - lane;
  Thread& self = m.threads[m.running];
  Warp& warp = m.warps[m.running / 32];
  if (!(mask >> lane & 1)) fault(std::string("comes to ") + what + " whose mask does not name it", line);
  for (uint32_t rest = warp.arrived; rest; rest &= rest - 1) {
    int other = std::countr_zero(rest);
    // Lanes that wait for each other; else one of the two goes first.
    if (!(mask >> other & 1 && warp.mask[other] >> lane & 1)) continue;
    Line there = m.threads[first + other].line;
    if (!same(there, line))
      fault(std::string("comes to ") + what + " while lanes of its warp wait at " + text(there), line);
    if (mask != warp.mask[other]) fault(std::string("comes to ") + what + " with another mask than its warp", line);
    break;
  }
  self.line = line;
  warp.mask[lane] = mask;
  warp.brought[lane] = brought;
  warp.arrived |= 1u << lane;
  if ((warp.arrived & mask) != mask) {
    self.state = Thread::at_rendezvous;
    yield();
    return;
  }
  if (mask == kWholeWarp) {
    run(f, warp.brought);
  } else {
    void* lanes[32] = {};
    for (int i = 0; i < 32; ++i)
      if (mask >> i & 1) lanes[i] = warp.brought[i];
    run(f, lanes);
  }
  warp.arrived &= ~mask;
  if (orders && mask == kWholeWarp) {
    warp.seen[m.running / 32] = m.clock++;
    warp.clock = m.clock;
  }
  for (int i = 0; i < 32; ++i)
    if (mask >> i & 1) m.threads[first + i].state = Thread::ready;
}

}  // namespace simt
