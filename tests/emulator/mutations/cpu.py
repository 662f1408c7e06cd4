"""The CPU kernels: small mistakes of each operation, in the library as users build it."""

from tests.emulator.mutations import Mutation

CPU = True
OPERATION = ()
FILES = ()
CHECKS = [
    ("tests/operations/test_operations.py", "-k", "test_kernel_matches_reference"),
    ("tests/operations", "-m", "not slow"),
    ("tests/operations/test_instruction_sets.py", "-m", "slow"),
]

DROPOUT, SUMS = "cpu/common/dropout.inl", "cpu/common/split_sums.h"
SITE, SITE_CALL, SITE_BACKWARD = (f"cpu/gated_adapter/{name}" for name in ("rows.inl", "call.h", "backward.cpp"))
UPDATE_CALL, UPDATE_BACKWARD = (f"cpu/mode_update/{name}" for name in ("call.h", "backward.cpp"))
MIXTURE, MIXTURE_FORWARD, MIXTURE_BACKWARD = (
    f"cpu/expert_mixture/{name}" for name in ("rows.inl", "forward.cpp", "backward.cpp")
)
CORES, RECONSTRUCT = "cpu/mode_cores/call.h", "cpu/cp_reconstruct/call.h"

MUTATIONS = [
    # sums over tokens
    Mutation(
        "split one token short",
        SUMS,
        r"splits\.begin\(split \+ 1\), into\)",
        "splits.begin(split + 1) - (rows % 512 == 0 && split == 0), into)",
    ),
    Mutation(
        "a split's sum rounded to the storage type",
        SUMS,
        r"(vectors<T, G>\(\)\.accumulate\(scratch\.get\(\), s\.count, s\.in\(into\)\);)",
        r"\1 for (int64_t j = 0; j < s.count; ++j) { G rounded; store(rounded, s.in(into)[j]); "
        "s.in(into)[j] = load(rounded); }",
    ),
    Mutation("first split left out", SUMS, r"into = split \? sums\.get\(\)", "into = split > 1 ? sums.get()"),
    # the update
    Mutation(
        "dh rounded after each projection",
        UPDATE_BACKWARD,
        r"(t\.dh\.get\(\)\);)(\s+\}\n\n  // What dh gives)",
        r"\1 for (int64_t j = 0; j < n * rank; ++j) { G rounded; store(rounded, t.dh[j]); t.dh[j] = load(rounded); }\2",
    ),
    Mutation(
        "dM numbered by the given dy",
        UPDATE_BACKWARD,
        r"C\* to = g\.dy\[k\] && g\.dcores \? static_cast<C\*>\(g\.dcores\) \+ k \* p\.core_size\(\)",
        "int64_t given = 0; for (int64_t i = 0; i < k; ++i) given += g.dy[i] != nullptr;\n"
        "C* to = g.dy[k] && g.dcores ? static_cast<C*>(g.dcores) + given * p.core_size()",
    ),
    # the mixture
    Mutation("empty mean divides by zero", MIXTURE_FORWARD, r"if \(count\) gates", "gates"),
    Mutation("an empty mean has no bias", MIXTURE_FORWARD, r"if \(!count && call_\.gate_bias\(\)\)", "if (false)"),
    Mutation(
        "logits spread for dx alone",
        MIXTURE_BACKWARD,
        r"loops_\.put_logits\(b, t\.dlogits",
        "if (g_.dx) loops_.put_logits(b, t.dlogits",
    ),
    Mutation(
        "a sample's logits spread for dx alone",
        MIXTURE_BACKWARD,
        r"loops_\.put_logits\(described",
        "if (g_.dx) loops_.put_logits(described",
    ),
    # the site
    Mutation(
        "variance as E[x^2] - E[x]^2",
        SITE,
        r"square \+= \(y\[j\] - mean\) \* \(y\[j\] - mean\);(\s+C rstd = C\(1\) / sqrt\(square / C\(d\))",
        r"square += y[j] * y[j];\1 - mean * mean",
    ),
    Mutation(
        "mean of a padded sample divides by zero",
        SITE_CALL,
        r"std::max<int64_t>\(1, (std::count\([^)]*\))\)",
        r"\1",
    ),
    Mutation("padding has a gradient", SITE_BACKWARD, r"call_\.counts\(i\) \? (mean[^:]*) : C\(0\)", r"\1"),
    Mutation(
        "gelu of the unrounded z",
        SITE,
        r"(store\(a\[j\], gelu<kind>\()C\(load\(z\[j\]\)\)",
        r"\1C(load(product[j])) + (bias ? bias[j] : C(0))",
    ),
    # dropout
    Mutation(
        "site: seed's high word dropped",
        SITE,
        r"static_cast<uint64_t>\(\*p\.seed\)",
        "static_cast<uint32_t>(*p.seed)",
    ),
    Mutation(
        "update: seed's high word dropped",
        UPDATE_CALL,
        r"static_cast<uint64_t>\(\*p_\.seed\)",
        "static_cast<uint32_t>(*p_.seed)",
    ),
    Mutation("lanes: seed's high word dropped", DROPOUT, r"static_cast<uint32_t>\(seed >> 32\) \+", "0u +"),
    Mutation(
        "position in 32 bits",
        DROPOUT,
        r"(C\* words\) \{\n)(  uint64_t begin = first / 4)",
        r"\1  first = static_cast<uint32_t>(first);\n\2",
    ),
    Mutation(
        "site: row's position in 32 bits",
        SITE,
        r"static_cast<uint64_t>\(row\) \* p\.d",
        "static_cast<uint32_t>(row * p.d)",
    ),
    Mutation(
        "update: projection's position in 32 bits",
        "kernels/mode_update.h",
        r"static_cast<uint64_t>\(k\) \* rows \* rank",
        "static_cast<uint32_t>(k * rows * rank)",
    ),
    # constants of a call in float64
    Mutation(
        "dropout's factor in float32", DROPOUT, r"C\(1\.0 / \(1\.0 - dropout\)\)", "C(float(1.0 / (1.0 - dropout)))"
    ),
    Mutation("site: eps in float32", SITE, r"C\(p\.eps\)", "C(float(p.eps))"),
    Mutation("site: scale in float32", SITE, r"C factor = C\(p\.scale\)", "C factor = C(float(p.scale))"),
    Mutation(
        "mixture: alpha in float32",
        MIXTURE,
        r"const C alpha = C\(b\.p->alpha\)",
        "const C alpha = C(float(b.p->alpha))",
    ),
    Mutation("cores: temperature in float32", CORES, r"C\(1 / p\.temperature\)", "C(float(1 / p.temperature))"),
]
