/* The digest of the sources that the library was compiled from. */
#ifdef _WIN32
__declspec(dllexport)
#endif
const char *organics_sources = ORGANICS_SOURCES;
