#include "tiles.h"

// Whether the operating system lets this process multiply as the kernels were compiled to.
extern "C" int tiles_usable() { return tiles_allowed(); }
