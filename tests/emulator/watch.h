// What the lanes of a warp ask of the memories together: bank conflicts of shared memory, sectors of global memory.
//
// Lanes run one after the other here. What they do between two barriers of the block is written down, and the n-th
// access of each lane at one place of the source counts as one instruction of the warp; so a lane that skips a turn of
// a loop is taken for one turn ahead of the others.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "shadow.h"

namespace simt {

struct Asked {
  Line line;
  uint64_t at;  // offset in shared memory or address in global memory
  int32_t bytes, lane;
  bool global, write;
};

class Watch {
 public:
  struct Sums {
    int64_t conflicts = 0, sectors_read = 0, sectors_written = 0;
  };

  void start(int threads) { lanes_.assign(threads, {}); }
  void note(int thread, const Asked& asked) { lanes_[thread].push_back(asked); }

  // At a barrier of the block and at its end: adds up what was noted; `found(line, conflicts)` for each place.
  template <class Found>
  void finish(Sums& sums, const Found& found) {
    for (size_t first = 0; first < lanes_.size(); first += 32) {
      std::map<std::pair<Place, int>, std::vector<Asked>> together;
      for (size_t lane = first; lane < first + 32; ++lane) {
        std::map<Place, int> times;
        for (const Asked& asked : lanes_[lane]) {
          Place place{asked.line.file_name(), asked.line.line(), asked.line.column(), asked.bytes, asked.write};
          together[{place, times[place]++}].push_back(asked);
        }
        lanes_[lane].clear();
      }
      for (auto& [place, asked] : together) {
        const Asked& any = asked.front();
        if (any.global) {
          (any.write ? sums.sectors_written : sums.sectors_read) += 32 * sectors(asked);
        } else if (int64_t count = conflicts(asked)) {
          sums.conflicts += count;
          found(any.line, count);
        }
      }
    }
  }

 private:
  using Place = std::tuple<const char*, uint32_t, uint32_t, int32_t, bool>;

  static int64_t sectors(const std::vector<Asked>& asked) {
    std::vector<uint64_t> all;
    for (const Asked& one : asked) all.push_back(one.at / 32);
    std::sort(all.begin(), all.end());
    return std::unique(all.begin(), all.end()) - all.begin();
  }

  // The memory gives 32 words at a time, each from a bank of its own: 8 bytes a lane take two turns of 16 lanes, 16
  // bytes four of 8. Lanes that ask for one word share it.
  static int64_t conflicts(const std::vector<Asked>& asked) {
    int64_t count = 0;
    int lanes = asked.front().bytes <= 4 ? 32 : 128 / asked.front().bytes;
    for (int turn = 0; turn < 32 / lanes; ++turn) {
      std::vector<uint64_t> words;
      for (const Asked& one : asked)
        if (one.lane / lanes == turn)
          for (int64_t byte = 0; byte < one.bytes; byte += 4) words.push_back((one.at + byte) / 4);
      if (words.empty()) continue;
      std::sort(words.begin(), words.end());
      words.erase(std::unique(words.begin(), words.end()), words.end());
      int in_bank[32] = {};
      for (uint64_t word : words) ++in_bank[word % 32];
      count += *std::max_element(in_bank, in_bank + 32) - 1;
    }
    return count;
  }

  std::vector<std::vector<Asked>> lanes_;
};

}  // namespace simt
