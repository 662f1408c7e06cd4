#include "simt.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <numeric>
#include <random>
#include <sstream>
#include <vector>

#include "fiber.h"
#include "shadow.h"

namespace simt {
namespace {

struct Copy {
  int64_t to, bytes;
  const void* from;
};

struct Thread {
  enum State { ready, at_barrier, at_rendezvous, finished };
  Context context;
  State state = ready;
  Line line;
  std::vector<Copy> issued;              // copies of no group yet
  std::deque<std::vector<Copy>> groups;  // oldest first
};

struct Warp {
  uint32_t arrived = 0;
  int barriers = 0;
  Line line;
  void* brought[32];
};

struct Buffer {
  std::string name;
  char* data;
  int64_t bytes;
  bool writable;
  Shadow shadow;
};

// Everything of the launch in progress: there is one at a time.
struct Machine {
  Order order = Order::ascending;
  std::mt19937_64 random;
  std::vector<Buffer> buffers;
  Counters counters = {};
  std::string report;

  const std::function<void()>* kernel = nullptr;
  Context scheduler;
  std::unique_ptr<Stacks> stacks;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<char> shared;
  Shadow shared_shadow;
  int64_t x = 0, y = 0, block = 0;
  int running = 0, waiting = 0, done = 0, barriers = 0;
  Line barrier_line;
} m;

constexpr int64_t kNear = 4096;  // bytes beside a buffer at which a report names it

std::string text(Line line) {
  std::string file = line.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(line.line());
}

bool same(Line a, Line b) { return a.line() == b.line() && a.file_name() == b.file_name(); }

std::string thread_text(int thread) {
  return "thread " + std::to_string(thread) + " (warp " + std::to_string(thread / 32) + ", lane " +
         std::to_string(thread % 32) + ")";
}

void yield() { m.threads[m.running].context.switch_to(m.scheduler); }

Moment now(Line line) {
  return {m.block, m.running, m.barriers, m.warps[m.running / 32].barriers, line.line()};
}

void thread_main() {
  (*m.kernel)();
  Thread& self = m.threads[m.running];
  if (!self.issued.empty() || !self.groups.empty()) fault("a thread ends before its asynchronous copies have arrived", {});
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
    out << "\n  " << count << " threads (" << group << (count > 4 ? ", ..." : "") << ") ";
    if (first.state == Thread::finished) out << "have left the kernel";
    if (first.state == Thread::at_barrier) out << "wait at the block barrier " << text(first.line);
    if (first.state == Thread::at_rendezvous) out << "wait for the rest of their warp at " << text(first.line);
  }
  return out.str();
}

template <class T>
void arrange(std::vector<T>& order) {
  std::iota(order.begin(), order.end(), T(0));
  if (m.order == Order::descending) std::reverse(order.begin(), order.end());
  if (m.order == Order::random) std::shuffle(order.begin(), order.end(), m.random);
}

void run_block(int64_t shared_bytes) {
  int count = static_cast<int>(m.threads.size());
  // NaN in every floating type, so that a value nobody wrote does not pass for one.
  m.shared.assign(shared_bytes, char(0xff));
  m.shared_shadow.reset(shared_bytes);
  m.waiting = m.done = m.barriers = 0;
  std::fill(m.warps.begin(), m.warps.end(), Warp{});
  for (int i = 0; i < count; ++i) {
    m.threads[i] = Thread{};
    m.threads[i].context.start((*m.stacks)[i], Stacks::kBytes, thread_main);
  }
  std::vector<int> warps(m.warps.size()), lanes(32);
  while (m.done < count) {
    bool progress = false;
    arrange(warps);
    for (int warp : warps) {
      for (bool again = true; again;) {
        again = false;
        arrange(lanes);
        for (int lane : lanes) {
          if (warp * 32 + lane >= count || m.threads[warp * 32 + lane].state != Thread::ready) continue;
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
}

template <class Where>
void check_cells(Shadow& shadow, Access access, int64_t at, int64_t bytes, const Where& where, Line line) {
  Moment moment = now(line);
  for (int64_t byte = at - at % Shadow::kGrain; byte < at + bytes; byte += Shadow::kGrain) {
    Shadow::Cell& cell = shadow.cell(byte);
    if (cell.state == Shadow::State::copying)
      fault("touches " + where() + ", to which an asynchronous copy is still under way", line);
    auto conflict = access == Access::read ? Shadow::read(cell, moment) : Shadow::write(cell, moment);
    if (!conflict) continue;
    std::string other = conflict->block == moment.block ? thread_text(conflict->thread)
                                                        : "block " + std::to_string(conflict->block);
    fault("race: " + std::string(access == Access::read ? "reads " : "writes ") + where() + ", which " + other +
              " touched at line " + std::to_string(conflict->line) + " with no barrier in between",
          line);
  }
}

}  // namespace

void set_order(Order order, uint64_t seed) {
  m.order = order;
  m.random.seed(seed);
}
void add_buffer(const char* name, void* data, int64_t bytes, bool writable) {
  if (data && bytes) m.buffers.push_back({name, static_cast<char*>(data), bytes, writable, {}});
}
void clear_buffers() { m.buffers.clear(); }
Counters counters() { return m.counters; }
void reset_counters() { m.counters = {}; }
const std::string& report() { return m.report; }
int thread_index() { return m.running; }
int64_t block_x() { return m.x; }
int64_t block_y() { return m.y; }
void count_matrix_product() { ++m.counters.matrix_products; }
void count_bank_conflicts(int64_t count) { m.counters.bank_conflicts += count; }

bool launch(int64_t grid_x, int64_t grid_y, int threads, int64_t shared_bytes, const std::function<void()>& kernel) {
  m.report.clear();
  if (grid_x < 1 || grid_y < 1 || threads < 1 || threads > 1024 || threads % 32 || grid_x > 0x7fffffff ||
      grid_y > 65535 || shared_bytes > 227 * 1024) {
    std::ostringstream out;
    out << "no GPU takes this launch: grid " << grid_x << " x " << grid_y << ", " << threads << " threads, "
        << shared_bytes << " bytes of shared memory";
    m.report = out.str();
    return false;
  }
  ++m.counters.launches;
  m.kernel = &kernel;
  m.threads = std::vector<Thread>(threads);
  m.warps.assign(threads / 32, Warp{});
  if (!m.stacks) m.stacks = std::make_unique<Stacks>(1024);
  for (Buffer& buffer : m.buffers)
    if (buffer.writable) buffer.shadow.reset(buffer.bytes);
  std::vector<int64_t> blocks(grid_x * grid_y);
  arrange(blocks);
  for (int64_t block : blocks) {
    m.block = block, m.x = block % grid_x, m.y = block / grid_x;
    run_block(shared_bytes);
    if (!m.report.empty()) return false;
  }
  return true;
}

void fault(const std::string& what, Line line) {
  std::ostringstream out;
  if (line.line()) out << text(line) << ": ";
  out << thread_text(m.running) << " of block (" << m.x << ", " << m.y << ") " << what;
  m.report = out.str();
  for (;;) yield();
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
  ++m.barriers;
  ++m.counters.barriers;
  for (Thread& thread : m.threads) thread.state = Thread::ready;
}

void warp_rendezvous(const char* what, void* brought, const std::function<void(void* const*)>& run, bool orders,
                     Line line) {
  Thread& self = m.threads[m.running];
  Warp& warp = m.warps[m.running / 32];
  if (warp.arrived && !same(warp.line, line))
    fault(std::string("comes to ") + what + " while lanes of its warp wait at " + text(warp.line), line);
  warp.line = self.line = line;
  warp.brought[m.running % 32] = brought;
  warp.arrived |= 1u << (m.running % 32);
  if (warp.arrived != 0xffffffffu) {
    self.state = Thread::at_rendezvous;
    yield();
    return;
  }
  run(warp.brought);
  warp.arrived = 0;
  warp.barriers += orders;
  for (int lane = 0; lane < 32; ++lane) m.threads[m.running / 32 * 32 + lane].state = Thread::ready;
}

void* shared(Access access, int64_t at, int64_t bytes, Line line) {
  auto name = [&] { return std::to_string(bytes) + " bytes of shared memory at " + std::to_string(at); };
  if (at % bytes) fault("is misaligned: " + name(), line);
  if (at < 0 || at + bytes > static_cast<int64_t>(m.shared.size()))
    fault("is out of bounds: " + name() + " of " + std::to_string(m.shared.size()), line);
  if (access == Access::read)
    for (int64_t byte = at; byte < at + bytes; byte += Shadow::kGrain)
      if (m.shared_shadow.cell(byte).state == Shadow::State::untouched)
        fault("reads " + name() + ", which nobody has written", line);
  check_cells(m.shared_shadow, access, at, bytes, name, line);
  return m.shared.data() + at;
}

void* global(Access access, const void* address, int64_t bytes, Line line) {
  char* at = static_cast<char*>(const_cast<void*>(address));
  for (Buffer& buffer : m.buffers) {
    if (at < buffer.data || at >= buffer.data + buffer.bytes) continue;
    int64_t offset = at - buffer.data;
    auto where = [&] { return buffer.name + " at byte " + std::to_string(offset); };
    if (offset + bytes > buffer.bytes) fault("runs past the end of " + where(), line);
    if (reinterpret_cast<uintptr_t>(at) % bytes) fault("is misaligned: " + where(), line);
    if (access == Access::write && !buffer.writable) fault("writes an input: " + where(), line);
    if (buffer.writable) check_cells(buffer.shadow, access, offset, bytes, where, line);
    (access == Access::read ? m.counters.global_read : m.counters.global_written) += bytes;
    return at;
  }
  std::ostringstream out;
  out << (access == Access::read ? "reads " : "writes ") << "global memory outside every buffer";
  for (Buffer& buffer : m.buffers) {
    int64_t past = at - (buffer.data + buffer.bytes), before = buffer.data - at;
    if (past >= 0 && past < kNear) out << ", " << past << " bytes past the end of " << buffer.name;
    if (before > 0 && before <= kNear) out << ", " << before << " bytes before " << buffer.name;
  }
  fault(out.str(), line);
}

void copy_async(int64_t to, const void* from, int64_t bytes, Line line) {
  char* destination = static_cast<char*>(shared(Access::write, to, bytes, line));
  global(Access::read, from, bytes, line);
  memset(destination, 0xff, bytes);
  for (int64_t byte = to; byte < to + bytes; byte += Shadow::kGrain)
    m.shared_shadow.cell(byte).state = Shadow::State::copying;
  m.threads[m.running].issued.push_back({to, bytes, from});
}

void commit_copies() {
  Thread& self = m.threads[m.running];
  self.groups.push_back(std::move(self.issued));
  self.issued.clear();
}

void wait_copies(int newest_left) {
  Thread& self = m.threads[m.running];
  for (; static_cast<int>(self.groups.size()) > newest_left; self.groups.pop_front()) {
    for (const Copy& copy : self.groups.front()) {
      for (int64_t byte = copy.to; byte < copy.to + copy.bytes; byte += Shadow::kGrain) {
        Shadow::Cell& cell = m.shared_shadow.cell(byte);
        cell.state = Shadow::State::written;
        cell.writer = now({});  // the bytes arrive now, and others see them after the next barrier
      }
      memcpy(m.shared.data() + copy.to, copy.from, copy.bytes);
    }
  }
}

}  // namespace simt
