// SPDX-License-Identifier: MIT
// The table of a target that is made of the shared bodies. Included inside a target region and namespace, last.

template <typename Weight>
constexpr WeightKernel float_kernel{ActivationForm::f32, matmul_float<Weight>};
template <typename Codes>
constexpr WeightKernel quant_kernel{ActivationForm::q8, matmul_quant<Codes>, matmul_packed<Codes>};

WeightKernel weight_kernel(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return float_kernel<WeightF32>;
    case DType::f16:
      return float_kernel<WeightF16>;
    case DType::bf16:
      return float_kernel<WeightBf16>;
    case DType::q4_0:
      return quant_kernel<CodesQ4_0>;
    case DType::q4_1:
      return quant_kernel<CodesQ4_1>;
    case DType::q5_0:
      return quant_kernel<CodesQ5_0>;
    case DType::q5_1:
      return quant_kernel<CodesQ5_1>;
    case DType::q8_0:
      return quant_kernel<CodesQ8_0>;
    case DType::q2_k:
      return quant_kernel<CodesQ2_K>;
    case DType::q3_k:
      return quant_kernel<CodesQ3_K>;
    case DType::q4_k:
      return quant_kernel<CodesQ4_K>;
    case DType::q5_k:
      return quant_kernel<CodesQ5_K>;
    case DType::q6_k:
      return quant_kernel<CodesQ6_K>;
    case DType::iq4_nl:
      return quant_kernel<CodesIQ4_NL>;
    case DType::iq4_xs:
      return quant_kernel<CodesIQ4_XS>;
    case DType::mxfp4:
      return quant_kernel<CodesMXFP4>;
  }
  SH_CHECK(false, "a DType that no file can hold");
}

constexpr KernelSet shared_set(const char* name, int rank, const char* needs, bool (*supported)()) {
  return {
      .name = name,
      .rank = rank,
      .needs = needs,
      .supported = supported,
      .weight_kernel = weight_kernel,
      .q8_row_bytes = Q8Row::n_bytes,
      .quantize_q8_part = quantize_q8_part,
      .dot = dot,
      .add = add_rows,
      .axpy = axpy,
      .rms_norm = rms_norm,
      .swiglu = swiglu,
      .exp_sum = exp_sum,
      .max = max_of,
      .rope_adjacent = rope_adjacent,
      .rope_halves = rope_halves,
      .gemm_nt = gemm_nt,
      .gemm_nn = gemm_nn,
      .gemm_tn = gemm_tn,
      .encode_row = encode_row,
      .decode_row = decode_row,
      .attend = attend,
  };
}
