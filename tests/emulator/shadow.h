// Who last touched each piece of memory, to find two threads that touch it without a barrier between them.
#pragma once

#include <cstdint>
#include <optional>
#include <source_location>
#include <vector>

namespace simt {

// One thread at one moment. Two moments of different threads are ordered by a block barrier between them, or by a
// warp barrier where both are lanes of one warp; moments of different blocks of a launch never are.
struct Moment {
  int64_t block = -1;
  int32_t thread = -1, barriers = 0, warp_barriers = 0;
  uint32_t line = 0;
};

inline bool ordered(const Moment& before, const Moment& now) {
  if (before.block != now.block) return false;
  if (before.thread == now.thread || before.barriers != now.barriers) return true;
  return before.thread / 32 == now.thread / 32 && before.warp_barriers != now.warp_barriers;
}

class Shadow {
 public:
  static constexpr int64_t kGrain = 2;  // bytes a cell

  enum class State : uint8_t { untouched, written, copying };
  struct Cell {
    Moment writer, reader, earlier_reader;  // the last reader, and the last one of another thread before it
    bool several_readers = false, several_warps = false;
    State state = State::untouched;
  };

  void reset(int64_t bytes) { cells_.assign((bytes + kGrain - 1) / kGrain, Cell{}); }
  Cell& cell(int64_t at) { return cells_[at / kGrain]; }

  // The moment that conflicts with this access, if one does.
  static std::optional<Moment> read(Cell& cell, const Moment& now) {
    if (cell.writer.thread >= 0 && !ordered(cell.writer, now)) return cell.writer;
    const Moment& other = cell.reader;
    bool stale = other.thread < 0 || (other.block == now.block && other.barriers != now.barriers);
    if (stale) {
      cell.several_readers = cell.several_warps = false;
    } else if (other.block != now.block || other.thread != now.thread) {
      cell.several_readers = true;
      cell.earlier_reader = other;
      if (other.block != now.block || other.thread / 32 != now.thread / 32) cell.several_warps = true;
    }
    cell.reader = now;
    return {};
  }

  static std::optional<Moment> write(Cell& cell, const Moment& now) {
    if (cell.writer.thread >= 0 && !ordered(cell.writer, now)) return cell.writer;
    const Moment& other = cell.reader;
    if (other.thread >= 0) {
      bool ok = ordered(other, now);
      // `reader` is the last of several: lanes of its warp are ordered as it is, other warps only by a block barrier.
      if (cell.several_readers && other.block == now.block && other.barriers == now.barriers)
        ok = !cell.several_warps && other.thread / 32 == now.thread / 32 && other.warp_barriers != now.warp_barriers;
      if (!ok) return other.thread == now.thread && other.block == now.block ? cell.earlier_reader : other;
    }
    cell.writer = now;
    cell.state = State::written;
    return {};
  }

 private:
  std::vector<Cell> cells_;
};

}  // namespace simt
