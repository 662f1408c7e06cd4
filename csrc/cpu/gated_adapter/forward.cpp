// VL-PET site on the CPU: which blocks, which GEMMs, in what order. The loops over a row's values are in
// gated_adapter/rows.inl, the GEMMs are torch's (kernels/host.h).
//
// A block of rows stays in cache from its first GEMM to its last store. The forward keeps z (and the gate's z), from
// which the backward recomputes the rest of a block, so nothing of width d but the result reaches memory; if the caller
// asks for it, the last GEMMs' results are kept too.

#include "cpu/gated_adapter/call.h"

namespace petx::cpu {
namespace {

template <class T, class G>
class Forward {
  using C = Compute<T>;

 public:
  Forward(const GatedAdapterParams& p, void* out) : p_(p), call_(p), out_(out) {}

  void run() {
    Division blocks = row_blocks(p_.rows, kMostRows<G>);
    Buffer<C> sample_gate;
    if (p_.granularity == Granularity::small) {
      each_block(blocks, [&](Scratch& t, int64_t first, int64_t rows) { first_pass(t, first, rows); });
      sample_gate = call_.sample_gates(static_cast<const C*>(p_.token_gate));
    }
    each_block(blocks, [&](Scratch& t, int64_t first, int64_t rows) {
      second_pass(t, first, rows, sample_gate ? sample_gate.get() + first : nullptr);
    });
  }

 private:
  struct Scratch {
    Buffer<G> h, x, z, a, up, gate;
    Buffer<C> work;
  };

  template <class Body>
  void each_block(Division blocks, const Body& body) {
    int64_t most = std::min(blocks.size, blocks.rows);
    host::parallel(blocks.parts(), [&](int64_t begin, int64_t end) {
      int64_t r = std::max(p_.r, p_.r_g);
      Scratch t{call_.operand_buffer(most * p_.d),
                call_.operand_buffer(p_.x ? most * p_.d_x : 0),
                buffer<G>(most * r),
                buffer<G>(most * r),
                buffer<G>(p_.up_product ? 0 : most * p_.d),
                buffer<G>(call_.large() && !p_.gate_product ? most * p_.d : 0),
                buffer<C>(3 * (p_.d + 8))};
      for (int64_t block = begin; block < end; ++block) {
        int64_t first = blocks.begin(block), rows = blocks.begin(block + 1) - first;
        body(t, first, rows);
      }
    });
  }

  // z = down(h or x) and a = gelu(z) of a block, z saved.
  void down(Scratch& t, int64_t first, int64_t rows) {
    const G* in = p_.reads_x_in_down() ? call_.operand(call_.x(first), rows * p_.d_x, t.x)
                                       : call_.operand(call_.h(first), rows * p_.d, t.h);
    gemm<G>(host::matrix(in, rows, p_.down_width()), call_.down.transposed(), host::matrix(t.z.get(), rows, p_.r));
    T* z = static_cast<T*>(p_.z) + first * p_.r;
    call_.loops.activate(t.z.get(), call_.vectors.down_bias, p_.activation, rows, p_.r, z, t.a.get());
  }

  void first_pass(Scratch& t, int64_t first, int64_t rows) {
    down(t, first, rows);
    GatedAdapterBlock<T, G> block = call_.block(first, rows);
    call_.loops.token_gate(block, t.a.get(), static_cast<C*>(p_.token_gate) + first);
  }

  void second_pass(Scratch& t, int64_t first, int64_t rows, const C* token) {
    G *up = p_.up_product ? call_.kept(p_.up_product, first) : t.up.get(), *gate = nullptr;
    if (call_.large()) {  // before `down`, whose z and a it shares scratch with
      const G* in = call_.operand(call_.x(first), rows * p_.d_x, t.x);
      gemm<G>(host::matrix(in, rows, p_.d_x), call_.gate_down.transposed(), host::matrix(t.z.get(), rows, p_.r_g));
      T* z = static_cast<T*>(p_.gate_z) + first * p_.r_g;
      call_.loops.activate(t.z.get(), call_.vectors.gate_down_bias, p_.activation, rows, p_.r_g, z, t.a.get());
      gate = p_.gate_product ? call_.kept(p_.gate_product, first) : t.gate.get();
      gemm<G>(host::matrix(t.a.get(), rows, p_.r_g), call_.gate_up.transposed(), host::matrix(gate, rows, p_.d));
    }
    if (p_.granularity == Granularity::small) {
      call_.loops.reactivate(call_.z(first), p_.activation, rows * p_.r, t.a.get());
    } else {
      down(t, first, rows);
    }
    call_.up_product(t.a.get(), rows, up);
    GatedAdapterBlock<T, G> block = call_.block(first, rows);
    block.up = up, block.gate = gate, block.token = token, block.work = t.work.get();
    if (p_.skip)
      block.wide_out = static_cast<C*>(out_) + first * p_.d;
    else
      block.out = static_cast<T*>(out_) + first * p_.d;
    call_.loops.forward(block);
  }

  const GatedAdapterParams& p_;
  GatedAdapterCall<T, G> call_;
  void* out_;
};

}  // namespace

void gated_adapter_fwd(const GatedAdapterParams& p, void* out) {
  if (p.rows == 0) return;
  with_types(p.dtype, [&]<class T, class G>() { Forward<T, G>(p, out).run(); });
}

}  // namespace petx::cpu
