// Every access to memory, checked: what simt.h promises of shared(), global() and copy_async().

#include <algorithm>
#include <cstring>
#include <sstream>

#include "machine.h"

namespace simt {
namespace {

constexpr int64_t kNear = 4096;  // bytes beside a buffer at which a report names it
constexpr int64_t kSector = 32;

// Who made an earlier access, and where.
std::string moment_text(const Moment& moment) {
  std::string who = thread_text(moment.thread);
  if (!moment.line.line()) return "several threads of warp " + std::to_string(moment.thread / 32) + " touched";
  if (moment.clock < m.block_clock) {
    auto later = [](uint32_t clock, const Block& block) { return clock < block.clock; };
    auto block = std::upper_bound(m.started.begin(), m.started.end(), moment.clock, later) - 1;
    who = "block " + std::to_string(block->number);
  }
  return who + " touched at " + text(moment.line);
}

Moment now(Line line) { return {line, m.warps[m.running / 32].clock, m.running}; }
View view() { return {m.warps[m.running / 32].seen, m.block_clock}; }

template <class Where>
void check_cells(Shadow& shadow, uint32_t floor, uint32_t written, Access access, int64_t at, int64_t bytes,
                 const Where& where, Line line) {
  Moment moment = now(line), other;
  auto outcome = access == Access::read ? shadow.touch<false>(at, bytes, moment, view(), floor, written, other)
                                        : shadow.touch<true>(at, bytes, moment, view(), floor, written, other);
  if (outcome == Shadow::Outcome::fine) [[likely]]
    return;
  if (outcome == Shadow::Outcome::copying)
    fault("touches " + where() + ", to which an asynchronous copy is still under way", line);
  if (outcome == Shadow::Outcome::unwritten) fault("reads " + where() + ", which nobody has written", line);
  fault("race: " + std::string(access == Access::read ? "reads " : "writes ") + where() + ", which " +
            moment_text(other) + " with no barrier in between",
        line);
}

bool misaligned(uint64_t at, int64_t bytes) { return at & ((bytes & -bytes) - 1); }

void watch_global(Buffer& buffer, Access access, int64_t offset, int64_t bytes, Line line) {
  std::vector<bool>& touched = access == Access::read ? buffer.read : buffer.written;
  touched.resize((buffer.bytes + kSector - 1) / kSector);
  for (int64_t sector = offset / kSector; sector * kSector < offset + bytes; ++sector) {
    if (touched[sector]) continue;
    touched[sector] = true;
    (access == Access::read ? m.counters.distinct_read : m.counters.distinct_written) += kSector;
  }
  uint64_t at = reinterpret_cast<uint64_t>(buffer.data + offset);
  m.watch.note(m.running, {line, at, int32_t(bytes), m.running % 32, true, access == Access::write});
}

}  // namespace

void finish_watching() {
  Watch::Sums sums;
  m.watch.finish(sums, [](Line line, int64_t count) { m.conflicts[text(line)] += count; });
  m.counters.bank_conflicts += sums.conflicts;
  m.counters.sectors_read += sums.sectors_read, m.counters.sectors_written += sums.sectors_written;
}

void* shared(Access access, int64_t at, int64_t bytes, Line line, bool watched) {
  auto name = [&] { return std::to_string(bytes) + " bytes of shared memory at " + std::to_string(at); };
  if (misaligned(at, bytes)) fault("is misaligned: " + name(), line);
  if (at < 0 || at + bytes > static_cast<int64_t>(m.shared.size()))
    fault("is out of bounds: " + name() + " of " + std::to_string(m.shared.size()), line);
  check_cells(m.shared_shadow, m.block_clock, m.block_clock, access, at, bytes, name, line);
  if (m.watching && watched)
    m.watch.note(m.running, {line, uint64_t(at), int32_t(bytes), m.running % 32, false, access == Access::write});
  return m.shared.data() + at;
}

void* global(Access access, const void* address, int64_t bytes, Line line) {
  char* at = static_cast<char*>(const_cast<void*>(address));
  size_t& recent = m.recent[line.line() % kRecent];
  for (size_t tried = 0; tried <= m.buffers.size(); ++tried) {
    size_t number = tried ? tried - 1 : recent;
    if (number >= m.buffers.size()) continue;
    Buffer& buffer = m.buffers[number];
    if (at < buffer.data || at >= buffer.data + buffer.bytes) continue;
    recent = number;
    int64_t offset = at - buffer.data;
    auto where = [&] { return buffer.name + " at byte " + std::to_string(offset); };
    if (offset + bytes > buffer.bytes) fault("runs past the end of " + where(), line);
    if (misaligned(reinterpret_cast<uintptr_t>(at), bytes)) fault("is misaligned: " + where(), line);
    if (access == Access::write && buffer.contents == Contents::input) fault("writes an input: " + where(), line);
    if (buffer.contents != Contents::input)
      check_cells(buffer.shadow, m.launch_clock, buffer.contents == Contents::unwritten, access, offset, bytes, where,
                  line);
    (access == Access::read ? m.counters.global_read : m.counters.global_written) += bytes;
    if (m.watching) watch_global(buffer, access, offset, bytes, line);
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

void copy_async(int64_t to, const void* from, int64_t bytes, Line line, int64_t given) {
  char* destination = static_cast<char*>(shared(Access::write, to, bytes, line));
  if (given) global(Access::read, from, given, line);
  memset(destination, 0xff, bytes);
  m.shared_shadow.each(to, bytes, [](Shadow::Cell& cell) { cell.copying = true; });
  m.threads[m.running].copies.push_back({to, bytes, given, from});
}

void commit_copies() {
  Thread& self = m.threads[m.running];
  self.groups.push_back(self.copies.size());
}

void wait_copies(int newest_left) {
  Thread& self = m.threads[m.running];
  for (; static_cast<int>(self.groups.size() - self.groups_done) > newest_left; ++self.groups_done) {
    for (; self.copies_done < self.groups[self.groups_done]; ++self.copies_done) {
      const Copy& copy = self.copies[self.copies_done];
      // The bytes arrive now, and others see them after the next barrier.
      m.shared_shadow.each(copy.to, copy.bytes, [moment = now({})](Shadow::Cell& cell) {
        cell.copying = false;
        Line line = cell.writer.line;
        cell.writer = moment;
        cell.writer.line = line;
      });
      char* arrived = m.shared.data() + copy.to;
      memcpy(arrived, copy.from, copy.given);
      memset(arrived + copy.given, 0, copy.bytes - copy.given);
    }
  }
  if (self.copies_done == self.copies.size()) {
    self.copies.clear(), self.groups.clear();
    self.copies_done = self.groups_done = 0;
  }
}

}  // namespace simt
