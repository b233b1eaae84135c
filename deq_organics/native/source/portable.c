/* For every processor that the compiler knows: vectors of four floats. */
#define LANES 4
#define NAME(function) organics_##function##_portable
#include "organics.h"
#include "lanes.h"
#include "products.h"
#include "sequence.h"
#include "adjoint.h"
#include "circuits.h"
#include "steady.h"
#include "implicit.h"
#include "definite.h"
#include "values.h"
#include "gate.h"
