/* Columns of a matrix in another order: the compiled half of `git_rebasin.symmetry.permutation`.

   numpy's `take` along the last axis copies every element by a call of its own. Here a row, which
   the cache holds, is read by one loop that compilers vectorise. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

/* The loop is compiled for several generations of CPUs, of which the loader picks one. That needs
   gcc and glibc; elsewhere it is compiled for what all CPUs have. */
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__GLIBC__)
#define VECTORISED __attribute__((visibility("hidden"), target_clones("avx512f", "avx2", "default")))
#else
#define VECTORISED static
#endif
#if defined(_MSC_VER)
#define restrict __restrict
#endif

VECTORISED void copy_columns(const float *restrict from, const int32_t *restrict index,
                             float *restrict to, Py_ssize_t rows, Py_ssize_t n, Py_ssize_t m)
{
    for (Py_ssize_t i = 0; i < rows; i++, from += n, to += m)
        for (Py_ssize_t j = 0; j < m; j++) to[j] = from[index[j]];
}

/* Whether the three buffers are of the right types and fit together; else an error is set. */
static int check(const Py_buffer *from, const Py_buffer *index, const Py_buffer *to)
{
    int floats = from->itemsize == 4 && from->format[0] == 'f' && to->itemsize == 4 &&
                 to->format[0] == 'f' && index->itemsize == 4 && index->format[0] == 'i';
    if (!floats || from->ndim != 2 || index->ndim != 1 || to->ndim != 2) {
        PyErr_SetString(PyExc_TypeError,
                        "take_columns wants two float32 matrices, and int32 indices between them");
        return 0;
    }
    if (to->shape[0] != from->shape[0] || to->shape[1] != index->shape[0]) {
        PyErr_SetString(PyExc_ValueError, "`to` needs the rows of `from`, one column an index");
        return 0;
    }
    for (Py_ssize_t j = 0; j < index->shape[0]; j++) {
        int32_t k = ((const int32_t *)index->buf)[j];
        if (k < 0 || k >= from->shape[1]) {
            PyErr_Format(PyExc_IndexError, "index %d is out of bounds for %zd columns", (int)k,
                         from->shape[1]);
            return 0;
        }
    }
    return 1;
}

static PyObject *take_columns(PyObject *module, PyObject *args)
{
    PyObject *given[3], *result = NULL;
    Py_buffer buffer[3];
    int held = 0;
    (void)module;
    if (!PyArg_ParseTuple(args, "OOO:take_columns", &given[0], &given[1], &given[2])) return NULL;
    for (; held < 3; held++) {
        int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (held == 2 ? PyBUF_WRITABLE : 0);
        if (PyObject_GetBuffer(given[held], &buffer[held], flags)) break;
    }
    if (held == 3 && check(&buffer[0], &buffer[1], &buffer[2])) {
        Py_BEGIN_ALLOW_THREADS
        copy_columns(buffer[0].buf, buffer[1].buf, buffer[2].buf, buffer[0].shape[0],
                     buffer[0].shape[1], buffer[1].shape[0]);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    while (held) PyBuffer_Release(&buffer[--held]);
    return result;
}

static PyMethodDef methods[] = {
    {"take_columns", take_columns, METH_VARARGS,
     "take_columns(from, index, to)\n--\n\n"
     "Write to[i, j] = from[i, index[j]]; float32 matrices, int32 indices."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_gather", "Columns of a matrix in another order.", 0, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__gather(void) { return PyModuleDef_Init(&definition); }
