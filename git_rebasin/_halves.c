/* Numbers of 16 bits as float32: the compiled half of `git_rebasin.native`.

   numpy takes them one by one; here compilers vectorise whole bits, and all that has 16 of them has
   an exact float32, NaN and infinities included. */

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

typedef void widen(const uint16_t *restrict, uint32_t *restrict, Py_ssize_t);

/* Whether the two buffers are of the right types and fit together; else an error is set. */
static int check(const Py_buffer *from, const Py_buffer *to)
{
    if (!has_format(from, "H", 2) || !has_format(to, "f", 4)) {
        PyErr_SetString(PyExc_TypeError, "the bits of numbers are wanted, as uint16, and an array "
                                         "of float32, in the byte order of the machine");
        return 0;
    }
    if (to->len != 2 * from->len) {
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

static PyObject *convert(PyObject *args, widen *function)
{
    PyObject *given[2], *result = NULL;
    Py_buffer from = {0}, to = {0};
    if (!PyArg_UnpackTuple(args, "widen", 2, 2, &given[0], &given[1])) return NULL;
    if (borrow(given[0], &from, 0) && borrow(given[1], &to, 1) && check(&from, &to)) {
        Py_BEGIN_ALLOW_THREADS
        function(from.buf, to.buf, from.len / 2);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    PyBuffer_Release(&to); /* without effect on one that was not got */
    PyBuffer_Release(&from);
    return result;
}

static PyObject *from_float16(PyObject *module, PyObject *args)
{
    (void)module;
    return convert(args, widen_float16);
}

static PyObject *from_bfloat16(PyObject *module, PyObject *args)
{
    (void)module;
    return convert(args, widen_bfloat16);
}

static PyMethodDef methods[] = {
    {"float16", from_float16, METH_VARARGS,
     "float16(from, to)\n--\n\n"
     "Write float16 numbers, given by their bits as uint16, as float32; `to` may share no memory\n"
     "with `from`."},
    {"bfloat16", from_bfloat16, METH_VARARGS,
     "bfloat16(from, to)\n--\n\nThe same of bfloat16."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_halves", "Numbers of 16 bits as float32.", 0, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__halves(void) { return PyModuleDef_Init(&definition); }
