/* Let MKL choose its kernels by what the processor can do, not by who made it.

   torch holds MKL, which asks mkl_serv_intel_cpu_true() and takes other kernels, with other rounding, on processors that
   are not Intel's. FFTs then differ in the last bit, and the logarithm of an almost silent mel band makes 2e-3 of it. With
   this answer in place before torch is loaded, AMD's processors compute the same spectrograms as Intel's. What the
   processor cannot do is still never chosen: MKL looks at its features too. */
int mkl_serv_intel_cpu_true(void) { return 1; }
