#pragma once
typedef struct IOSurface* IOSurfaceRef;
