/* What the compiled parts share: what they demand of the arrays they are given, and how they read
   them.

   The loops run without the interpreter's lock, so another thread may write to an array that is
   being read. What an index or a loop depends on is therefore read once, into memory of our own,
   and checked there. Arrays that are written to share no byte with any other. */

#ifndef GIT_REBASIN_NATIVE_H
#define GIT_REBASIN_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

/* Inner loops are compiled for several generations of CPUs, of which the loader picks one. That
   needs gcc and glibc; elsewhere they are compiled for what all CPUs have. */
#if defined(VECTORISED)
#elif defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__GLIBC__)
#define CLONES target_clones("avx512f", "avx2", "default")
#define VECTORISED __attribute__((visibility("hidden"), CLONES))
#else
#define VECTORISED static
#endif
#if defined(_MSC_VER)
#define restrict __restrict
#endif

#define SIGNED "il" /* codes of signed integers that may have 4 bytes: on Windows a long has */

/* Whether the items are native ones of a size, by any of the codes: `i`, `@i`, `=i`, and `<i` on a
   machine that is little-endian. */
static int has_format(const Py_buffer *buffer, const char *codes, Py_ssize_t itemsize)
{
    const char *format = buffer->format ? buffer->format : "B";
    const char *native = PY_BIG_ENDIAN ? "@=>!" : "@=<";
    if (*format && strchr(native, *format)) format++;
    return *format && !format[1] && strchr(codes, *format) && buffer->itemsize == itemsize;
}

static int borrow(PyObject *array, Py_buffer *buffer, int writable)
{
    int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
    return PyObject_GetBuffer(array, buffer, flags) == 0;
}

static int is_aligned(const Py_buffer *buffer)
{
    return buffer->len == 0 || (uintptr_t)buffer->buf % (uintptr_t)buffer->itemsize == 0;
}

static int overlap(const Py_buffer *a, const Py_buffer *b)
{
    uintptr_t p = (uintptr_t)a->buf, q = (uintptr_t)b->buf;
    return a->len > 0 && b->len > 0 && p < q + (uintptr_t)b->len && q < p + (uintptr_t)a->len;
}

/* Read an index once: the compiler may not go back to memory that others write to. */
static int32_t read_once(const void *buffer, Py_ssize_t at)
{
    return ((const volatile int32_t *)buffer)[at];
}

#endif
