// The state of the launch in progress, which simt.cpp and memory.cpp share.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "fiber.h"
#include "simt.h"
#include "watch.h"

namespace simt {

struct Copy {
  int64_t to, bytes, given;
  const void* from;
};

struct Thread {
  enum State { ready, at_barrier, at_group, at_rendezvous, finished };
  Context context;
  State state = ready;
  int barrier = 0;  // which, while at_group
  Line line;
  std::vector<Copy> copies;    // in the order of their issue
  std::vector<size_t> groups;  // where each committed group ends among the copies
  size_t groups_done = 0, copies_done = 0;
};

struct Warp {
  uint32_t arrived = 0, clock = 0;
  uint32_t mask[32];  // of the lanes that arrived: with whom
  void* brought[32];
  uint32_t seen[kMostWarps];
};

struct Group {
  int threads = 0;  // 0 where nobody waits
  std::vector<int> waiting;
  Line line;
};

struct Buffer {
  std::string name;
  char* data;
  int64_t bytes;
  Contents contents;
  Shadow shadow;
  std::vector<bool> read, written;  // by sector, while watching
};

struct Block {
  uint32_t clock;  // its first
  int64_t number;
};

constexpr int kGroups = 16, kRecent = 64;

// Everything of the launch in progress: there is one at a time.
struct Machine {
  Order order = Order::ascending;
  uint64_t random = 0;
  std::vector<Buffer> buffers;
  size_t recent[kRecent] = {};  // which buffer a place in the source asked for last
  Counters counters = {};
  std::string report, conflicts_text;
  bool watching = false;
  int64_t sample = 0;
  std::vector<int64_t> products;  // that were left to torch: rows, depth, columns of each
  FindBody find_body = nullptr;
  Watch watch;
  std::map<std::string, int64_t> conflicts;

  const std::function<void()>* kernel = nullptr;
  Context scheduler;
  std::unique_ptr<Stacks> stacks;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<char> shared;
  Shadow shared_shadow;
  int64_t x = 0, y = 0, block = 0;
  int running = 0, waiting = 0, done = 0;
  uint32_t clock = 0, block_clock = 0, launch_clock = 0;  // the latest barrier's, the block's first, the launch's
  std::vector<Block> started;
  Line barrier_line;
  Group groups[kGroups];
};
extern Machine m;

std::string text(Line line);
std::string thread_text(int thread);
void finish_watching();
inline void yield() { m.threads[m.running].context.switch_to(m.scheduler); }

}  // namespace simt
