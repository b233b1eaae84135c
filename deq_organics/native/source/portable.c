/* For every processor that the compiler knows: vectors of four floats. */
#define LANES 4
#define NAME(function) organics_##function##_portable
#include "kernels.h"
