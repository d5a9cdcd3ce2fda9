// What metal-cpp uses of the Objective-C runtime, declared for type checks off Apple's platforms.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
typedef struct objc_class* Class;
typedef struct objc_selector* SEL;
typedef signed char BOOL;
struct Protocol;
struct objc_object {
  Class isa;
};
typedef struct objc_object* id;
extern "C" {
Class objc_lookUpClass(const char*);
Class objc_getClass(const char*);
SEL sel_registerName(const char*);
void* objc_getProtocol(const char*);
void* class_getMethodImplementation(Class, SEL);
}
