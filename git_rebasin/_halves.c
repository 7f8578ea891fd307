/* Numbers of 16 bits as float32, and back: the compiled half of `git_rebasin.native`.

   numpy takes them one by one; here compilers vectorise whole bits. All that has 16 of them has an
   exact float32, NaN and infinities included; the way back rounds to the nearest, of two as near to
   the even one. */

#include "_native.h"

#define EXPONENT 0x0f800000u /* of float16, where float32 has its own */
#define SHIFT 0x38000000u    /* from the exponents of float16 to those of float32: 112 */

/* float16: five bits of exponent, ten of fraction. The smallest have none before the point, so the
   one that float32 puts there is taken away again. */
VECTORISED void widen_float16(const uint16_t *restrict from, uint32_t *restrict to, Py_ssize_t n)
{
    for (Py_ssize_t i = 0; i < n; i++) {
        uint32_t half = from[i], sign = (half & 0x8000u) << 16, bits = (half & 0x7fffu) << 13;
        uint32_t exponent = bits & EXPONENT;
        uint32_t normal = bits + SHIFT + (exponent == EXPONENT ? SHIFT : 0);
        uint32_t small = bits + SHIFT + 0x00800000u, one = SHIFT + 0x00800000u;
        float x, y;
        memcpy(&x, &small, sizeof x);
        memcpy(&y, &one, sizeof y);
        x -= y;
        memcpy(&small, &x, sizeof small);
        to[i] = sign | (exponent ? normal : small);
    }
}

/* bfloat16: the upper half of a float32. */
VECTORISED void widen_bfloat16(const uint16_t *restrict from, uint32_t *restrict to, Py_ssize_t n)
{
    for (Py_ssize_t i = 0; i < n; i++) to[i] = (uint32_t)from[i] << 16;
}

#define LEAST 0x38800000u /* 2^-14, below which float16 has fewer digits */
#define BEYOND 0x47800000u /* 2^16, which it has not */

/* To float16. What it holds with fewer digits is added to ½, whose last digit is their last one, so
   that the processor rounds; of others half of the last digit is added to the bits, less one where
   the digit before is even. */
VECTORISED void narrow_float16(const uint32_t *restrict from, uint16_t *restrict to, Py_ssize_t n)
{
    for (Py_ssize_t i = 0; i < n; i++) {
        uint32_t bits = from[i] & 0x7fffffffu, sign = (from[i] >> 16) & 0x8000u;
        uint32_t normal = (bits - SHIFT + 0xfffu + ((bits >> 13) & 1)) >> 13;
        uint32_t small = bits < LEAST ? bits : 0, half = 0x3f000000u; /* large ones would be slow */
        uint32_t special = bits > 0x7f800000u ? 0x7e00u : 0x7c00u;
        float x, y;
        memcpy(&x, &small, sizeof x);
        memcpy(&y, &half, sizeof y);
        x += y;
        memcpy(&small, &x, sizeof small);
        uint32_t found = bits < LEAST ? small - half : bits < BEYOND ? normal : special;
        to[i] = (uint16_t)(sign | found);
    }
}

/* To bfloat16: the upper half, rounded. */
VECTORISED void narrow_bfloat16(const uint32_t *restrict from, uint16_t *restrict to, Py_ssize_t n)
{
    for (Py_ssize_t i = 0; i < n; i++) {
        uint32_t bits = from[i], rounded = bits + 0x7fffu + ((bits >> 16) & 1);
        uint32_t special = (bits & 0x7fffffffu) > 0x7f800000u;
        to[i] = (uint16_t)((special ? bits | 0x400000u : rounded) >> 16);
    }
}

/* Whether the two buffers are of the right types and fit together; else an error is set. */
static int check(const Py_buffer *halves, const Py_buffer *floats, const Py_buffer *from,
                 const Py_buffer *to)
{
    if (!has_format(halves, "H", 2) || !has_format(floats, "f", 4)) {
        PyErr_SetString(PyExc_TypeError, "the bits of numbers are wanted, as uint16, and an array "
                                         "of float32, in the byte order of the machine");
        return 0;
    }
    if (floats->len != 2 * halves->len) {
        PyErr_SetString(PyExc_ValueError, "`to` needs as many numbers as `from`");
        return 0;
    }
    if (!is_aligned(from) || !is_aligned(to)) {
        PyErr_SetString(PyExc_ValueError, "an array is not aligned to its items: copy it");
        return 0;
    }
    if (overlap(to, from)) {
        PyErr_SetString(PyExc_ValueError, "`to` shares memory with `from`: copy one");
        return 0;
    }
    return 1;
}

enum way { WIDEN_FLOAT16, WIDEN_BFLOAT16, NARROW_FLOAT16, NARROW_BFLOAT16 };

static PyObject *convert(PyObject *args, enum way way)
{
    PyObject *given[2], *result = NULL;
    Py_buffer from = {0}, to = {0};
    int widens = way == WIDEN_FLOAT16 || way == WIDEN_BFLOAT16;
    if (!PyArg_UnpackTuple(args, "convert", 2, 2, &given[0], &given[1])) return NULL;
    if (borrow(given[0], &from, 0) && borrow(given[1], &to, 1) &&
        check(widens ? &from : &to, widens ? &to : &from, &from, &to)) {
        Py_ssize_t n = (widens ? from.len : to.len) / 2;
        Py_BEGIN_ALLOW_THREADS
        switch (way) {
        case WIDEN_FLOAT16: widen_float16(from.buf, to.buf, n); break;
        case WIDEN_BFLOAT16: widen_bfloat16(from.buf, to.buf, n); break;
        case NARROW_FLOAT16: narrow_float16(from.buf, to.buf, n); break;
        case NARROW_BFLOAT16: narrow_bfloat16(from.buf, to.buf, n); break;
        }
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    PyBuffer_Release(&to); /* without effect on one that was not got */
    PyBuffer_Release(&from);
    return result;
}

#define METHOD(name, way)                                   \
    static PyObject *name(PyObject *module, PyObject *args) \
    {                                                       \
        (void)module;                                       \
        return convert(args, way);                          \
    }
METHOD(from_float16, WIDEN_FLOAT16)
METHOD(from_bfloat16, WIDEN_BFLOAT16)
METHOD(to_float16, NARROW_FLOAT16)
METHOD(to_bfloat16, NARROW_BFLOAT16)

static PyMethodDef methods[] = {
    {"from_float16", from_float16, METH_VARARGS,
     "from_float16(from, to)\n--\n\n"
     "Write float16 numbers, given by their bits as uint16, as float32; `to` may share no memory\n"
     "with `from`."},
    {"from_bfloat16", from_bfloat16, METH_VARARGS,
     "from_bfloat16(from, to)\n--\n\nThe same of bfloat16."},
    {"to_float16", to_float16, METH_VARARGS,
     "to_float16(from, to)\n--\n\nWrite float32 numbers as float16, by their bits as uint16."},
    {"to_bfloat16", to_bfloat16, METH_VARARGS,
     "to_bfloat16(from, to)\n--\n\nThe same to bfloat16."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_halves", "Numbers of 16 bits as float32, and back.", 0, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__halves(void) { return PyModuleDef_Init(&definition); }
