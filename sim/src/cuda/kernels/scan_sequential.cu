// The sequential scans of a sequence.
#include "scan_sequential.cuh"

/// Threads for the states of a few channels.
constexpr int THREADS = 256;

#define SCAN(name, R, F, SUM)                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS) scan_##name(Scan p) {      \
        extern __shared__ float shared[];                                            \
        scan_in<R, F<R>, SUM>(p, shared, max(1, THREADS / p.states));                \
    }
SCAN(fused_correctly_rounded, Ieee, Fused, IN_ORDER)
SCAN(fused_unit, CudaFast, Fused, IN_ORDER)
SCAN(fused_libm, CudaLibm, Fused, IN_ORDER)
SCAN(fused_unit_subnormal, CudaSubnormal, Fused, IN_ORDER)
SCAN(separate_correctly_rounded, Ieee, Separate, OF_PRODUCTS)
SCAN(separate_unit, CudaFast, Separate, OF_PRODUCTS)
SCAN(separate_libm, CudaLibm, Separate, OF_PRODUCTS)
SCAN(separate_unit_subnormal, CudaSubnormal, Separate, OF_PRODUCTS)
SCAN(grouped_correctly_rounded, Ieee, Grouped, IN_GROUPS)
SCAN(grouped_unit, CudaFast, Grouped, IN_GROUPS)
SCAN(grouped_libm, CudaLibm, Grouped, IN_GROUPS)
SCAN(grouped_unit_subnormal, CudaSubnormal, Grouped, IN_GROUPS)
