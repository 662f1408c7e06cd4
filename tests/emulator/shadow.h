// Who last touched each piece of memory, to find two threads that touch it without a barrier between them.
//
// Every barrier has a number, larger than all before it, which becomes the clock of the warps that took part; a warp
// remembers up to which clock it has seen every other. So barriers of the block, of some of its warps and of one warp
// order what they order and no more, and clocks below a block's first one belong to blocks and launches before it.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>
#include <source_location>

namespace simt {

using Line = std::source_location;
constexpr int kMostWarps = 32;

// One thread between two of its warp's barriers.
struct Moment {
  Line line;
  uint32_t clock = 0;  // 0 is never
  int32_t thread = 0;
};

// What the running thread knows of the others.
struct View {
  const uint32_t* seen;  // of each warp, up to which clock; of its own, everything before the last barrier
  uint32_t block;        // the first clock of the block
  bool after(const Moment& before, int thread) const {
    return before.clock >= block && (before.thread == thread || before.clock <= seen[before.thread / 32]);
  }
};

class Shadow {
 public:
  struct Cell {
    Moment writer, reader, earlier;         // the last reader, and the last of another thread before it
    uint32_t others = 0, others_clock = 0;  // the warps of all readers before these, and the latest of their clocks
    bool copying = false, halved = false;
  };

  Shadow() = default;
  Shadow(Shadow&& other) noexcept : cells_(other.cells_), halves_(other.halves_), words_(other.words_) {
    other.cells_ = other.halves_ = nullptr;
  }
  Shadow& operator=(Shadow&&) = delete;
  ~Shadow() { free(cells_), free(halves_); }

  // A cell a word. The kernel of the machine that emulates gives the pages as they are touched.
  void grow(int64_t bytes) {
    int64_t words = (bytes + 3) / 4;
    if (words <= words_) return;
    free(cells_), free(halves_);
    cells_ = zeros(words), halves_ = nullptr, words_ = words;
  }

  // Calls visit(cell) for the cells of `bytes` at `at`; a word whose halves were ever touched apart has two.
  template <class Visit>
  void each(int64_t at, int64_t bytes, const Visit& visit) {
    for (int64_t word = at / 4; word * 4 < at + bytes; ++word) {
      Cell& cell = cells_[word];
      if (bytes < 4 && !cell.halved) halve(word);
      if (!cell.halved || at < word * 4 + 2) visit(cell);
      if (cell.halved && at + bytes > word * 4 + 2) visit(halves_[word]);
    }
  }

  // Notes an access to `bytes` at `at`. Clocks below `floor` are of no meaning any more. Where it is not fine, `other`
  // is the access that conflicts.
  enum class Outcome { fine, raced, copying, unwritten };
  template <bool writes>
  Outcome touch(int64_t at, int64_t bytes, const Moment& now, const View& view, uint32_t floor, uint32_t written,
                Moment& other) {
    Outcome outcome = Outcome::fine;
    each(at, bytes, [&](Cell& cell) {
      if (cell.copying && cell.writer.clock >= floor)
        outcome = Outcome::copying;
      else if (!writes && cell.writer.clock < written)
        outcome = Outcome::unwritten;
      else if (!(writes ? write(cell, now, view, floor, other) : read(cell, now, view, floor, other)))
        outcome = Outcome::raced;
    });
    return outcome;
  }

 private:
  // Both are false where an earlier access conflicts with this one.
  static bool read(Cell& cell, const Moment& now, const View& view, uint32_t floor, Moment& conflict) {
    if (cell.writer.clock >= floor && !view.after(cell.writer, now.thread)) return conflict = cell.writer, false;
    if (cell.reader.clock == now.clock && cell.earlier.clock == now.clock) {  // two readers are enough to tell of
      cell.others |= 1u << now.thread / 32;
      cell.others_clock = now.clock;
      return true;
    }
    if (cell.reader.clock < floor) {
      forget_readers(cell);
    } else if (cell.reader.thread != now.thread) {
      if (readers_before(cell, now, view, floor, conflict)) {
        forget_readers(cell);
      } else {
        if (cell.earlier.clock >= floor) {
          cell.others |= 1u << cell.earlier.thread / 32;
          if (cell.earlier.clock > cell.others_clock) cell.others_clock = cell.earlier.clock;
        }
        cell.earlier = cell.reader;
      }
    }
    cell.reader = now;
    return true;
  }

  static bool write(Cell& cell, const Moment& now, const View& view, uint32_t floor, Moment& conflict) {
    if (cell.writer.clock >= floor && !view.after(cell.writer, now.thread)) return conflict = cell.writer, false;
    if (cell.reader.clock >= floor && !readers_before(cell, now, view, floor, conflict)) return false;
    cell.reader.clock = 0;
    forget_readers(cell);
    cell.copying = false;
    cell.writer = now;
    return true;
  }

  static Cell* zeros(int64_t count) {
    void* memory = calloc(count, sizeof(Cell));
    if (!memory) throw std::bad_alloc();
    return static_cast<Cell*>(memory);
  }

  void halve(int64_t word) {
    if (!halves_) halves_ = zeros(words_);
    halves_[word] = cells_[word];
    cells_[word].halved = true;
  }

  static void forget_readers(Cell& cell) { cell.earlier.clock = cell.others = cell.others_clock = 0; }

  // Whether all readers come before `now`. Of more than two only the warps and the latest clock are known: exact for
  // barriers of the whole block, too strict for some mixtures of barriers of a few warps.
  static bool readers_before(const Cell& cell, const Moment& now, const View& view, uint32_t floor, Moment& conflict) {
    if (!view.after(cell.reader, now.thread)) return conflict = cell.reader, false;
    if (cell.earlier.clock >= floor && !view.after(cell.earlier, now.thread)) return conflict = cell.earlier, false;
    for (int warp = 0; cell.others >> warp && warp < kMostWarps; ++warp)
      if (cell.others >> warp & 1 && (cell.others_clock < view.block || cell.others_clock > view.seen[warp]))
        return conflict = {Line(), cell.others_clock, warp * 32}, false;
    return true;
  }

  Cell* cells_ = nullptr;
  Cell* halves_ = nullptr;
  int64_t words_ = 0;
};

}  // namespace simt
